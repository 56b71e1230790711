"""Where a prefix ends, if that is among the tops: most searches need no more."""

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._bracket import (
    in_order,
    inside,
    learn,
    pivots_of,
    rank,
    value_of,
)
from sampling_jax._device import by_device
from sampling_jax._marks import Bits, Known, Weigh, is_within, known_of, least_of
from sampling_jax._rows import packed, unpacked
from sampling_jax._where import where
from sampling_jax._wide import Wide

PASSES = 6  # most searches take no more


def settle(bits: Bits, left: Array, like: Known, weigh: Weigh) -> Array:
    """Close the bracket where the prefix ends among tops; else lower it below them.

    Each pass narrows it down to numbers among the tops. Elsewhere than on CPU some take more than
    are done here: they are still within, and can go on.

    Args:
      bits: what is known, `like` these.
      left: the tops of what is left.

    Returns:
      the bracket, packed.
    """
    own, notes = bits
    weights = weigh(unpacked(notes, like.marks).row, left)

    def unfinished(loop: tuple[Array, Array]) -> Array:
        is_any_within = jnp.any(is_within(*known_of((loop[0], notes), like)))
        # Elsewhere than on CPU, not to have to ask after each pass is worth a few too many.
        goes_on: Array = by_device(cpu=lambda: is_any_within, default=lambda: loop[1] < PASSES)
        return goes_on

    def body(loop: tuple[Array, Array]) -> tuple[Array, Array]:
        # With a barrier, or a compiler takes the notes apart before the loop, by a kernel each.
        bracket, marks = known_of(lax.optimization_barrier((loop[0], notes)), like)
        least = least_of(marks.floor)
        # At first the least of the tops, and no middle: it tells whether the end is among them.
        is_first = (bracket.low < least)[:, None] & jnp.array([[True, False, False]])
        upper = bracket._replace(low=jnp.maximum(bracket.low, least - 1))
        pivots = where(is_first, least[:, None], pivots_of(bracket))
        pivots = in_order(inside(upper, pivots))
        masses, lows, highs = _weigh(left, weights, value_of(pivots))
        masses = _wide.add(_wide.column(marks.base), masses)
        highs = jnp.maximum(rank(highs) + 1, least[:, None])
        bracket = learn(bracket, rank(lows), highs, masses, is_within(bracket, marks))
        return packed(bracket), loop[1] + 1

    result, _ = lax.while_loop(unfinished, body, (own, jnp.int32(0)))
    return result


def _weigh(x: Array, weights: Array, pivots: Array) -> tuple[Wide, Array, Array]:
    """Of x [N, groups, rows, lanes] and pivots [N, P]: the weights wide [N, P] of all that are no
    less, the least of those, and the largest of all others.
    """
    x, weights = (v[:, :, None] if v.ndim else v for v in (x, weights))
    is_in = x >= pivots[:, None, :, None, None]
    high, low = _wide.widen(where(is_in, weights, 0))
    least, most = where(is_in, x, jnp.inf), where(is_in, -jnp.inf, x)
    start = [jnp.uint32(0), jnp.uint32(0), jnp.float32(jnp.inf), jnp.float32(-jnp.inf)]

    def join(a: list[Array], b: list[Array]) -> list[Array]:
        less, more = where(a[2] < b[2], a[2], b[2]), where(a[3] > b[3], a[3], b[3])
        return [a[0] + b[0], a[1] + b[1], less, more]

    # One at a time: two at once take twice as long.
    for axis in (3, 1, 2):
        high, low, least, most = lax.reduce([high, low, least, most], start, join, (axis,))
        high, low = _wide.carry(high, low)
    return (high, low), least, most
