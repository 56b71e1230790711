"""Where the shortest prefix of a ranking whose weights reach a target ends."""

import math

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax._bracket import is_open
from sampling_jax._chunks import first_light, to_chunks
from sampling_jax._dive import dive
from sampling_jax._guess import sample_of
from sampling_jax._marks import (
    TOLD,
    Bits,
    Cut,
    Known,
    Weigh,
    bits_of,
    end_value,
    is_below,
    is_to_tell,
    known_of,
)
from sampling_jax._mass import stacked, weigh_above
from sampling_jax._rows import packed, where_wanted
from sampling_jax._settle import settle
from sampling_jax._weights import clean, row_weights

# What is known, the tops of what is left, and uint32 [N, 3, chunks]: what chunks weigh above an
# end, and how many are equal to it. Not packed with the rest, as devices may share those.
State = tuple[Bits, Array, Array]


def search(
    known: Known, left: Array, sums: Array, logits: Array, weigh: Weigh
) -> tuple[Known, Array]:
    """Close brackets of logits [N, V], clean or not, and tell what their chunks weigh if asked.

    Nearly all that is kept ends among the tops. Where it does not, passes over all logits follow,
    until few are left above an end: then the tops of these.

    Args:
      known: brackets of targets above 0, and what is known of the tops of lanes.
      left: those.
      sums: as in `State`, where they are told.
      weigh: gives weights uint32 that are never less for a larger logit, but for rounding; a
        scalar if all logits weigh the same.

    Returns:
      brackets whose `low` is the largest number such that the weights of all from it upwards reach
      the target. If not even all reach it, either -inf or the least.
    """

    def look(state: State, logits: Array) -> State:
        bits, left, sums = state
        x = to_chunks(clean(logits))
        # Before the branch, or a compiler picks each of it once for each other.
        sample = sample_of(x)
        bits, left = lax.cond(
            jnp.any(is_below(*known_of(bits, known))),
            lambda: dive(bits, left, known, x, sample, weigh),
            lambda: (bits, left),
        )

        bracket, marks = known_of(bits, known)
        is_settled = ~jnp.any(is_open(bracket)) & jnp.any(is_to_tell(bracket, marks))
        bits, sums = lax.cond(is_settled, lambda: _tell(bits, known, x), lambda: (bits, sums))
        return bits, left, sums

    def unfinished(state: State) -> Array:
        now, marks = known_of(state[0], known)
        return jnp.any(is_open(now) | is_to_tell(now, marks))

    def body(state: State) -> State:
        bits, left, sums = state
        bits = settle(bits, left, known, weigh), bits[1]
        state = bits, left, sums
        if math.prod(left.shape[1:]) >= logits.shape[1]:  # nothing is below them
            return state
        now, marks = known_of(bits, known)
        return where_wanted(look, is_below(now, marks) | is_to_tell(now, marks), state, logits)

    bits, _, sums = lax.while_loop(unfinished, body, (bits_of(known), left, sums))
    return known_of(bits, known), sums


def tell(known: Known, sums: Array, logits: Array) -> tuple[Known, Array]:
    """The same of brackets that are closed."""

    def look(state: tuple[Bits, Array], logits: Array) -> tuple[Bits, Array]:
        return _tell(state[0], known, to_chunks(clean(logits)))

    bits, sums = where_wanted(look, is_to_tell(*known), (bits_of(known), sums), logits)
    return known_of(bits, known), sums


def _tell(bits: Bits, like: Known, x: Array) -> tuple[Bits, Array]:
    """What chunks x [N, chunks, rows, lanes] weigh above an end, and what min_p drops of them."""
    bracket, marks = known_of(bits, like)
    told = marks._replace(status=jnp.full_like(marks.status, TOLD))
    if marks.cut is not None:
        light, threshold = marks.cut
        light = lax.cond(
            jnp.any(threshold > 0),
            lambda: first_light(x, row_weights(marks.row, x), threshold),
            lambda: light,
        )
        told = told._replace(cut=Cut(light, threshold))
    own = stacked(weigh_above(x, marks.row, end_value(bracket, told)))
    return (bits[0], packed(told)), own
