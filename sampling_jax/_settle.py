"""Where a prefix ends, if that is among the tops: most searches need no more."""

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._bracket import (
    Bracket,
    after,
    before,
    in_order,
    inside,
    is_open,
    learn,
    pivots_of,
    rank,
    value_of,
)
from sampling_jax._locate import Weigh
from sampling_jax._rows import packed, unpacked
from sampling_jax._tops import Tops
from sampling_jax._wide import Wide

PASSES = 6  # most searches take no more


def is_within(bracket: Bracket, floor: Array) -> Array:
    """Bool [N]: whether it is open, and tops above a floor may tell more of the end."""
    return is_open(bracket) & (bracket.high > _least(floor))


def settle(bracket: Bracket, tops: Tops, base: Wide, weigh: Weigh) -> Bracket:
    """Close the bracket where the prefix ends among tops of it; else lower it below them.

    Each pass narrows it down to numbers among the tops. Some take more than are done here: they are
    still within, and can go on.

    Args:
      base: wide [N], the weights of all above the tops.
    """
    weights = weigh(tops.logits)

    def unfinished(loop: tuple[Array, Array]) -> Array:
        bracket, floor, _ = unpacked(loop[0], state)
        # Elsewhere than on CPU, not to have to ask after each pass is worth a few too many.
        is_counted = lax.platform_dependent(cpu=lambda: False, default=lambda: True)
        goes_on: Array = (loop[1] < PASSES) & (jnp.any(is_within(bracket, floor)) | is_counted)
        return goes_on

    def body(loop: tuple[Array, Array]) -> tuple[Array, Array]:
        bracket, floor, base = unpacked(loop[0], state)
        least = _least(floor)
        # At first the least of the tops, and no middle: it tells whether the end is among them.
        is_first = (bracket.low < least)[:, None] & jnp.array([[True, False, False]])
        upper = bracket._replace(low=jnp.maximum(bracket.low, before(least)))
        pivots = jnp.where(is_first, least[:, None], pivots_of(bracket))
        pivots = in_order(inside(upper, pivots))
        masses, lows, highs = _weigh(tops.logits, weights, value_of(pivots))
        masses = _wide.add(_wide.column(base), masses)
        highs = jnp.maximum(after(rank(highs)), least[:, None])
        bracket = learn(bracket, rank(lows), highs, masses, is_within(bracket, floor))
        return packed((bracket, floor, base)), loop[1] + 1

    # Packed, as a compiler makes a kernel of each part that enters a loop.
    state = bracket, tops.floor, base
    result, _ = lax.while_loop(unfinished, body, (packed(state), jnp.int32(0)))
    return unpacked(result, bracket)


def _least(floor: Array) -> Array:
    """Ranks int32 [N]: tops hold all from these upwards."""
    return after(rank(floor))


def _weigh(x: Array, weights: Array, pivots: Array) -> tuple[Wide, Array, Array]:
    """Of x [N, groups, rows, lanes] and pivots [N, P]: the weights wide [N, P] of all that are no
    less, the least of those, and the largest of all others.
    """
    x, weights = (v[:, :, None] if v.ndim else v for v in (x, weights))
    is_in = x >= pivots[:, None, :, None, None]
    high, low = _wide.widen(jnp.where(is_in, weights, 0))
    least, most = jnp.where(is_in, x, jnp.inf), jnp.where(is_in, -jnp.inf, x)
    start = [jnp.uint32(0), jnp.uint32(0), jnp.float32(jnp.inf), jnp.float32(-jnp.inf)]

    def join(a: list[Array], b: list[Array]) -> list[Array]:
        less, more = jnp.where(a[2] < b[2], a[2], b[2]), jnp.where(a[3] > b[3], a[3], b[3])
        return [a[0] + b[0], a[1] + b[1], less, more]

    # One at a time: two at once take twice as long.
    for axis in (3, 1, 2):
        high, low, least, most = lax.reduce([high, low, least, most], start, join, (axis,))
        high, low = _wide.carry(high, low)
    return (high, low), least, most
