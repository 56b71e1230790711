"""The one selection primitive: the shortest prefix of a ranking whose weights reach a target."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._wide import Wide

PIVOTS = 6
LARGEST = np.finfo(np.float32).max
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def rank(x: Array) -> Array:
    """int32 in the order of the floats."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def value_of(ranks: Array) -> Array:
    """The float32 of a rank."""
    return lax.bitcast_convert_type(ranks ^ ((ranks >> 31) & 0x7FFFFFFF), jnp.float32)


class Bracket(NamedTuple):
    """What is known of the end of a prefix: it is a number of rank `low` or more, below `high`."""

    low: Array  # int32 [N]; the weights of all of this rank or more reach the target
    high: Array  # int32 [N]
    above: Wide  # wide [N], the weights of all of rank `high` or more, which do not reach it


def shortest_prefix(
    x: Array, weights: Array, target: Wide, bracket: Bracket, wanted: Array
) -> tuple[Array, Wide]:
    """Where the shortest prefix of x [N, M, L] that reaches a target ends.

    Each round weighs what lies above a few pivots inside a bracket of ranks, in one pass, and
    tightens the bracket to what occurs in it, so that ties end the search too.

    Args:
      x: float32, no NaN.
      weights: uint32 [N, M, L]; M is at most 2**13.
      target: wide [N].
      bracket: what is known of the end at the start.
      wanted: bool [N]; other rows cost nothing and give anything.

    Returns:
      float32 [N], the largest number such that the weights of all from it upwards reach the
      target; wide [N], the weights of all above it.
    """

    def unfinished(bracket: Bracket) -> Array:
        return jnp.any(bracket.low + 1 < bracket.high)

    def tighten(bracket: Bracket) -> Bracket:
        low, high, above = bracket
        is_open = low + 1 < high
        pivots = _pivots(low, high)
        ranks = rank(x)
        parts: list[Array] = []
        for pivot in pivots:
            parts += _wide.widen(jnp.where(ranks >= pivot[:, None, None], weights, 0))
        occurs = (ranks >= low[:, None, None]) & (ranks < high[:, None, None])
        masses, least, greatest = _reduce(
            parts, jnp.where(occurs, ranks, INT_MAX), jnp.where(occurs, ranks, INT_MIN)
        )
        low = jnp.where(is_open, least, low)
        high = jnp.where(is_open, greatest + 1, high)
        for pivot, mass in zip(pivots, masses, strict=True):
            missed = is_open & _wide.greater(target, mass)
            low = jnp.where(is_open & ~missed, jnp.maximum(low, pivot), low)
            high = jnp.where(missed, jnp.minimum(high, pivot), high)
            above = _wide.select(missed & _wide.greater(mass, above), mass, above)
        return Bracket(low, high, above)

    low = jnp.where(wanted, bracket.low, bracket.high)
    result = lax.while_loop(unfinished, tighten, bracket._replace(low=low))
    return value_of(result.low), result.above


def _pivots(low: Array, high: Array) -> list[Array]:
    """Ranks in (low, high): even in value, which is soon, and the middle rank, which ends."""
    middle = low + ((high - low).astype(jnp.uint32) >> 1).astype(jnp.int32)
    first, last = (jnp.clip(value_of(r), -LARGEST, LARGEST) for r in (low, high - 1))
    shares = [i / PIVOTS for i in range(1, PIVOTS)]
    even = [rank(first * (1 - share) + last * share) for share in shares]
    return [jnp.clip(p, low + 1, jnp.maximum(high - 1, low + 1)) for p in (middle, *even)]


def _reduce(parts: list[Array], least: Array, greatest: Array) -> tuple[list[Wide], Array, Array]:
    """Sums of all parts, the minimum and the maximum, over all axes but the first."""

    def combine(a: list[Array], b: list[Array]) -> list[Array]:
        sums = [x + y for x, y in zip(a[:-2], b[:-2], strict=True)]
        return [*sums, jnp.minimum(a[-2], b[-2]), jnp.maximum(a[-1], b[-1])]

    start = [jnp.uint32(0)] * len(parts) + [jnp.int32(INT_MAX), jnp.int32(INT_MIN)]
    operands = [*parts, least, greatest]
    for _ in range(2):
        *sums, least, greatest = lax.reduce(operands, start, combine, (1,))
        wide = [_wide.carry(*pair) for pair in zip(sums[::2], sums[1::2], strict=True)]
        operands = [*(part for pair in wide for part in pair), least, greatest]
    return wide, least, greatest
