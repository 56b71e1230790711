"""What a search knows of the end of a prefix: two floats that it lies between."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._checks import LARGEST
from sampling_jax._device import by_device
from sampling_jax._rows import per_row, traced_once
from sampling_jax._where import where
from sampling_jax._wide import Wide

SUBNORMAL = 0x7FFFFF  # bits of positive floats up to these are subnormal
SIGN = -(2**31)  # the bit of it in an int32
NEAR = 1 / 16  # how far from a guess a search looks, as a share of the bracket


class Bracket(NamedTuple):
    """The end of a prefix is a number of rank `low` or more, below `high`."""

    low: Array  # int32 [N]
    high: Array  # int32 [N]
    reached: Wide  # wide [N], the weights of all of rank `low` or more; at first about so
    above: Wide  # wide [N], the weights of all of rank `high` or more, which do not
    target: Wide  # wide [N]


@traced_once
def rank(x: Array) -> Array:
    """int32 in the order of the floats; subnormal ones and -0 count as 0.

    So one more is the next that a clean logit can be.
    """
    bits = lax.bitcast_convert_type(x, jnp.int32)
    size = jnp.maximum((bits & 0x7FFFFFFF) - SUBNORMAL, 0)
    return where(bits < 0, -size, size)


@traced_once
def value_of(ranks: Array) -> Array:
    """The float32 of a rank."""
    size = jnp.abs(ranks)
    bits = where(ranks == 0, 0, size + SUBNORMAL) | (ranks & SIGN)
    return lax.bitcast_convert_type(bits, jnp.float32)


@traced_once
def is_open(bracket: Bracket) -> Array:
    """Bool [N]: whether more than one number is left."""
    return bracket.low < bracket.high - 1


def opened(
    top: Array, least: Array, total: Wide, target: Wide, wanted: Array, otherwise: Array
) -> Bracket:
    """From the rank least int32 [N] to the largest logit top float32 [N], with about wide [N]
    `total`; closed about the rank `otherwise` in the rows bool [N] not wanted.
    """
    most = rank(top)
    low = where(wanted, jnp.minimum(least, most), otherwise)
    high = where(wanted, most, otherwise) + 1
    nothing = _wide.keep(low > high, total)  # zeros that vary over devices as the total does
    return Bracket(low, high, total, nothing, target)


def raised(bracket: Bracket, least: Array) -> Bracket:
    """Where it is open, it begins at rank int32 [N] or above: there is nothing below."""
    low = jnp.clip(least, bracket.low, bracket.high - 1)
    return bracket._replace(low=where(is_open(bracket), low, bracket.low))


def learn(
    bracket: Bracket, lows: Array, highs: Array, masses: Wide, wanted: Array | bool = True
) -> Bracket:
    """Tighten a bracket in the rows bool [N] wanted, given the weights wide [N, P] of all from P
    pivots upwards, and int32 [N, P]: the rank of the least of those and the one above all others.
    """
    low, high, reached, above, target = bracket
    is_missed = _wide.greater(_wide.column(target), masses)
    is_new = (is_open(bracket) & wanted)[:, None]
    sides = (
        (is_new & ~is_missed, (low, *reached), (lows, *masses)),
        (is_new & is_missed, (high, *above), (highs, *masses)),
    )
    every = [
        where(is_told, new, old[:, None])
        for is_told, olds, news in sides
        for old, new in zip(olds, news, strict=True)
    ]

    def best(a: list[Array], b: list[Array]) -> list[Array]:
        is_better = [a[0] > b[0]] * 3 + [a[3] < b[3]] * 3
        return [where(c, x, y) for c, x, y in zip(is_better, a, b, strict=True)]

    zero, least, most = jnp.uint32(0), np.iinfo(np.int32).min, np.iinfo(np.int32).max
    start = [jnp.int32(least), zero, zero, jnp.int32(most), zero, zero]
    low, *more = lax.reduce(every, start, best, (1,))  # one reduce, and nothing after it
    return Bracket(low, more[2], (more[0], more[1]), (more[3], more[4]), target)


def shrunk(bracket: Bracket, x: Array, wanted: Array) -> Bracket:
    """As narrow as x [N, ...] allows, in the rows where that holds all that is in the bracket."""
    low, high, *masses = bracket
    axes = tuple(range(1, x.ndim))
    least, most = (per_row(value_of(r), x) for r in (low, high - 1))
    is_in = (x >= least) & (x <= most)
    smallest = rank(jnp.min(where(is_in, x, jnp.inf), axis=axes))
    largest = rank(jnp.max(where(is_in, x, -jnp.inf), axis=axes))
    is_new = is_open(bracket) & wanted
    return Bracket(where(is_new, smallest, low), where(is_new, largest + 1, high), *masses)


def missing(bracket: Bracket) -> Array:
    """float32 [N], about the weight to come below the bracket."""
    return _wide.approximate(_wide.subtract(bracket.target, bracket.above))


@traced_once
def middle(bracket: Bracket) -> Array:
    """The middle rank."""
    half = (bracket.high - bracket.low).astype(jnp.uint32) >> 1
    return bracket.low + half.astype(jnp.int32)


@traced_once
def outline(bracket: Bracket) -> Array:
    """Ranks int32 [N, 3] in a bracket: last (which may have many ties), middle and first."""
    low, high, *_ = bracket
    return inside(bracket, jnp.stack([high - 1, middle(bracket), low], axis=1))


@traced_once
def pivots_of(bracket: Bracket) -> Array:
    """Ranks int32 [N, 3] in a bracket: the middle, which ends a search, and two about a guess."""
    low, high, reached, above, _ = bracket
    bottom, top = (jnp.clip(value_of(r), -LARGEST, LARGEST) for r in (low, high - 1))
    weight = jnp.maximum(_wide.approximate(_wide.subtract(reached, above)), 1)
    # A barrier, or a compiler makes a kernel of the one quotient.
    weights = lax.optimization_barrier(jnp.broadcast_to(weight[:, None], (low.shape[0], 3)))
    guess = jnp.broadcast_to(missing(bracket)[:, None], weights.shape) / weights
    share = jnp.clip(guess + jnp.array([[0, -NEAR, NEAR]], jnp.float32), 0, 1)
    near = rank(bottom[:, None] * share + top[:, None] * (1 - share))
    is_middle = jnp.array([[True, False, False]])
    return inside(bracket, where(is_middle, middle(bracket)[:, None], near))


@traced_once
def in_order(pivots: Array) -> Array:
    """Ranks int32 [N, P], sorted on CPU, for loops over many logits.

    There XLA makes one slow function in one thread of a loop that it takes for small, unless there
    is a sort in it.
    """
    result: Array = by_device(pivots, cpu=jnp.sort, default=lambda pivots: pivots)
    return result


@traced_once
def inside(bracket: Bracket, pivots: Array) -> Array:
    """Ranks int32 [N, P] moved into a bracket, where they can tell something."""
    last = bracket.high - 1
    return jnp.clip(pivots, bracket.low[:, None] + 1, last[:, None])
