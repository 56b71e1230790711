"""The one selection primitive: the shortest prefix of a ranking whose weights reach a target."""

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._bracket import (
    Bracket,
    after,
    before,
    inside,
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
from sampling_jax._locate import Weigh
from sampling_jax._rows import per_row
from sampling_jax._tops import Tops, column_tops
from sampling_jax._wide import Wide

FEW = 512  # so many of a ranking are surely among the tops of its columns, if they are spread
ROUNDS = 8  # passes over all logits before a look at the tops of what is left


def shortest_prefix(
    x: Array,
    tops: Tops,
    weigh: Weigh,
    target: Wide,
    total: Wide,
    weightless: Array,
    wanted: Array,
) -> tuple[Array, Wide]:
    """Where the shortest prefix of x [N, chunks, rows, lanes] that reaches a target ends.

    Passes over the tops of columns narrow it down to one number. If the prefix goes below those,
    passes over all logits come first, until few are left above its end: then the tops of these.

    Args:
      x: clean logits.
      tops: those of x.
      weigh: gives weights that are never less for a larger logit, but for rounding; a scalar if
        all logits weigh the same.
      target: wide [N], more than 0.
      total: wide [N], about what all weigh.
      weightless: float32 [N]: nothing below it weighs anything.
      wanted: bool [N]; other rows cost nothing and give anything.

    Returns:
      float32 [N], the largest number such that the weights of all from it upwards reach the
      target; wide [N], the weights of all above it. If not even all reach it, either -inf and
      what all weigh, or the least and what is above that.
    """
    bracket = opened(tops.logits, rank(weightless), total, wanted)
    nothing = bracket.above

    def dive(bracket: Bracket, old: Tops) -> tuple[Bracket, Tops]:
        least = _least(x)
        bracket = raised(bracket, rank(least))
        first = guesses(bracket, x, weigh, target)
        bracket = _narrow(bracket, x, weigh, target, nothing, first)
        tops = lax.cond(
            jnp.any(is_open(bracket)),
            lambda: column_tops(_below(bracket, x).reshape(len(x), -1)),
            lambda: old,
        )
        return bracket, tops

    def unfinished(state: tuple[Bracket, Tops]) -> Array:
        return jnp.any(is_open(state[0]))

    def body(state: tuple[Bracket, Tops]) -> tuple[Bracket, Tops]:
        bracket, tops = state
        bracket = _settle(bracket, tops, weigh, target)
        if tops.logits.shape == x.shape:  # nothing is below them
            return bracket, tops
        result: tuple[Bracket, Tops]
        result = lax.cond(jnp.any(is_open(bracket)), dive, lambda b, tops: (b, tops), bracket, tops)
        return result

    bracket, _ = lax.while_loop(unfinished, body, (bracket, tops))
    return value_of(bracket.low), bracket.above


def _least(x: Array) -> Array:
    """float32 [N], the least of x [N, chunks, rows, lanes] above -inf; inf if there is none."""
    # Columns first, or a compiler makes a slow loop.
    columns = best_of_columns(jnp.where(x > -jnp.inf, x, jnp.inf), lax.lt, jnp.inf)
    return jnp.min(lax.optimization_barrier(columns), axis=(1, 2))


def _settle(bracket: Bracket, tops: Tops, weigh: Weigh, target: Wide) -> Bracket:
    """Close the bracket where the prefix ends among tops of it; else lower it below them."""
    logits, base = tops.logits, bracket.above
    weights = weigh(logits)
    least = after(rank(tops.floor))  # the tops hold all from it upwards, and no pivot is below

    def unfinished(bracket: Bracket) -> Array:
        return is_open(bracket) & (bracket.high > least)

    def body(bracket: Bracket) -> Bracket:
        pivots = pivots_of(bracket, target)
        # At first the least of the tops too, which tells whether the prefix ends among them.
        is_first = (bracket.low < least)[:, None] & jnp.array([[True, False, False]])
        upper = bracket._replace(low=jnp.maximum(bracket.low, before(least)))
        pivots = inside(upper, jnp.where(is_first, least[:, None], pivots))
        wanted = unfinished(bracket)
        bracket = _weigh_pivots(bracket, logits, weights, target, base, pivots, wanted)
        return shrunk(bracket, logits, bracket.low >= least)

    return lax.while_loop(lambda bracket: jnp.any(unfinished(bracket)), body, bracket)


def _narrow(
    bracket: Bracket, x: Array, weigh: Weigh, target: Wide, base: Wide, first: Array
) -> Bracket:
    """Tighten brackets until few of the logits x above an end are left.

    `base` is wide [N], zeros.
    """
    weights = weigh(x)

    def unfinished(state: tuple[Bracket, Array]) -> Array:
        bracket, rounds = state
        each = weigh(value_of(bracket.low)).astype(jnp.float32)
        is_far = missing(bracket, target) > FEW * each
        # One round at least: it may settle a number with many ties, and is news in any case.
        goes_on = is_open(bracket) & (is_far | (rounds == 0))
        return jnp.any(goes_on) & (rounds < ROUNDS)

    def body(state: tuple[Bracket, Array]) -> tuple[Bracket, Array]:
        bracket, rounds = state
        pivots = jnp.where(rounds == 0, first, pivots_of(bracket, target))
        return _weigh_pivots(bracket, x, weights, target, base, pivots), rounds + 1

    result, _ = lax.while_loop(unfinished, body, (bracket, jnp.int32(0)))
    return result


def _weigh_pivots(
    bracket: Bracket,
    x: Array,
    weights: Array,
    target: Wide,
    base: Wide,
    pivots: Array,
    wanted: Array | bool = True,
) -> Bracket:
    """Weigh what lies above pivots [N, P] in a bracket, in one pass."""
    bounds = value_of(pivots)[:, None, :, None, None]
    x, weights = (in_blocks(v)[:, :, None] if v.ndim else v for v in (x, weights))
    masses = sum_blocks(jnp.where(x >= bounds, weights, 0))
    return learn(bracket, pivots, _wide.add(_wide.column(base), masses), target, wanted)


def _below(bracket: Bracket, x: Array) -> Array:
    """Logits x of which those above a bracket are -inf."""
    return jnp.where(x <= per_row(value_of(before(bracket.high)), x), x, -jnp.inf)


def end_of(
    x: Array, weights: Array, target: Wide, total: Wide, wanted: Array
) -> tuple[Array, Wide]:
    """As `shortest_prefix`, for weights uint32 of the shape of x that x alone does not tell."""
    least = rank(jnp.min(jnp.where(weights > 0, x, jnp.inf), axis=(1, 2, 3)))
    start = opened(x, least, total, wanted)

    def body(state: tuple[Bracket, Array]) -> tuple[Bracket, Array]:
        bracket, rounds = state
        pivots = jnp.where(rounds == 0, outline(bracket), pivots_of(bracket, target))
        bracket = _weigh_pivots(bracket, x, weights, target, start.above, pivots)
        return shrunk(bracket, x, wanted), rounds + 1

    result, _ = lax.while_loop(
        lambda state: jnp.any(is_open(state[0])), body, (start, jnp.int32(0))
    )
    return value_of(result.low), result.above
