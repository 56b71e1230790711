"""Passes over all logits: for what ends below their tops, or is not ranked by its logits."""

import math

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax._bracket import (
    Bracket,
    in_order,
    is_open,
    learn,
    missing,
    opened,
    outline,
    pivots_of,
    raised,
    rank,
    shrunk,
    value_of,
)
from sampling_jax._chunks import best_of_columns, in_blocks, sum_blocks
from sampling_jax._guess import guesses
from sampling_jax._marks import Bits, Known, Weigh, known_of
from sampling_jax._rows import packed, per_row, unpacked
from sampling_jax._tops import Tops, tops_of_few
from sampling_jax._where import where
from sampling_jax._wide import Wide

FEW = 96  # so many of a ranking are mostly among the tops of what is left, if they are spread
ROUNDS = 8  # passes over all logits before a look at the tops of what is left


def dive(
    bits: Bits, left: Array, like: Known, x: Array, sample: Array, weigh: Weigh
) -> tuple[Bits, Array]:
    """Tighten brackets by passes over all logits x [N, chunks, rows, lanes], of which [N, n] are a
    sample, until few are left above an end; and the tops of those, or else what was `left`.
    """
    bracket, marks = known_of(bits, like)
    bracket = raised(bracket, rank(_least(x)))
    first = guesses(bracket, sample, math.prod(x.shape[1:]), lambda x: weigh(marks.row, x))
    own = _narrow((packed(bracket), bits[1]), x, like, weigh, first)
    bracket = unpacked(own, bracket)
    few = lax.cond(
        jnp.any(is_open(bracket)),
        lambda: tops_of_few(_below(bracket, x), left),
        lambda: Tops(left, marks.floor),
    )
    marks = marks._replace(floor=few.floor, base=bracket.above)
    return (own, packed(marks)), few.logits


def _least(x: Array) -> Array:
    """float32 [N], the least of x [N, chunks, rows, lanes] above -inf; inf if there is none."""
    # Columns first, or a compiler makes a slow loop.
    columns = best_of_columns(where(x > -jnp.inf, x, jnp.inf), lax.lt, jnp.inf)
    return jnp.min(lax.optimization_barrier(columns), axis=(1, 2))


def _narrow(bits: Bits, x: Array, like: Known, weigh: Weigh, first: Array) -> Array:
    """Tighten brackets until few of the logits x above an end are left."""
    own, notes = bits
    weights = weigh(unpacked(notes, like.marks).row, x)

    def unfinished(state: tuple[Array, Array]) -> Array:
        (now, marks), rounds = known_of((state[0], notes), like), state[1]
        each = weigh(marks.row, value_of(now.low)).astype(jnp.float32)
        is_far = missing(now) > FEW * each
        # One round at least: it may settle a number with many ties, and is news in any case.
        goes_on = is_open(now) & (is_far | (rounds == 0))
        return jnp.any(goes_on) & (rounds < ROUNDS)

    def body(state: tuple[Array, Array]) -> tuple[Array, Array]:
        now, rounds = unpacked(state[0], like.bracket), state[1]
        pivots = where(rounds == 0, first, pivots_of(now))
        return packed(_learn_pivots(now, x, weights, pivots)), rounds + 1

    result, _ = lax.while_loop(unfinished, body, (own, jnp.int32(0)))
    return result


def _learn_pivots(bracket: Bracket, x: Array, weights: Array, pivots: Array) -> Bracket:
    """Tighten a bracket by what lies above pivots [N, P] in it, in one pass."""
    pivots = in_order(pivots)
    bounds = value_of(pivots)[:, None, :, None, None]
    x, weights = (in_blocks(v)[:, :, None] if v.ndim else v for v in (x, weights))
    masses = sum_blocks(where(x >= bounds, weights, 0))
    return learn(bracket, pivots, pivots, masses)


def _below(bracket: Bracket, x: Array) -> Array:
    """Logits x of which those above a bracket are -inf."""
    return where(x <= per_row(value_of(bracket.high - 1), x), x, -jnp.inf)


def end_of(
    x: Array, weights: Array, target: Wide, total: Wide, wanted: Array
) -> tuple[Array, Wide]:
    """Where the shortest prefix of x [N, ...] whose weights uint32 [N, ...] reach a target ends.

    Args:
      target: wide [N], more than 0.
      total: wide [N], what all weigh.
      wanted: bool [N]; other rows give anything.

    Returns:
      float32 [N], the largest number such that the weights of all from it upwards reach the
      target; wide [N], the weights of all above it.
    """
    least = rank(jnp.min(where(weights > 0, x, jnp.inf), axis=(1, 2, 3)))
    start = opened(jnp.max(x, axis=(1, 2, 3)), least, total, target, wanted, least)

    def body(state: tuple[Bracket, Array]) -> tuple[Bracket, Array]:
        bracket, rounds = state
        pivots = where(rounds == 0, outline(bracket), pivots_of(bracket))
        bracket = _learn_pivots(bracket, x, weights, pivots)
        return shrunk(bracket, x, wanted), rounds + 1

    result, _ = lax.while_loop(
        lambda state: jnp.any(is_open(state[0])), body, (start, jnp.int32(0))
    )
    return value_of(result.low), result.above
