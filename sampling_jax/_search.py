"""Where the shortest prefix of a ranking whose weights reach a target ends."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax._bracket import Bracket, is_open, value_of
from sampling_jax._chunks import first_light, to_chunks
from sampling_jax._dive import dive
from sampling_jax._mass import stacked, weigh_above
from sampling_jax._rows import packed, unpacked, where_wanted
from sampling_jax._settle import is_within, settle
from sampling_jax._tops import Tops
from sampling_jax._weights import Row, clean, row_weights
from sampling_jax._wide import Wide

ASKED, TOLD = 1, 2

# Packed brackets, packed marks, the tops of what is left, and uint32 [N, 3, chunks]: what chunks
# weigh above an end, and how many are equal to it. Not packed, as devices may share those.
State = tuple[Array, Array, Array, Array]


class Cut(NamedTuple):
    """What min_p drops."""

    light: Array  # float32 [N], the largest logit too light for it that has been seen
    threshold: Array  # uint32 [N], the least weight that it keeps; 0 if not to apply it


class Marks(NamedTuple):
    """What a search knows of each row, beside its bracket."""

    floor: Array  # float32 [N], of the tops of what is left
    base: Wide  # wide [N], the weights of all above those
    top_floor: Array  # float32 [N], of the tops of columns
    status: Array  # uint32 [N], ASKED where sums are wanted and not known, TOLD where known, or 0
    row: Row
    cut: Cut | None  # None if there is no min_p


def end_value(bracket: Bracket, marks: Marks) -> Array:
    """float32 [N], what the prefix is above."""
    value = value_of(bracket.low)
    return value if marks.cut is None else jnp.maximum(value, marks.cut.light)


def is_below(bracket: Bracket, marks: Marks) -> Array:
    """Bool [N]: whether it is open, and the end not among the tops of what is left."""
    return is_open(bracket) & ~is_within(bracket, marks.floor)


def is_to_tell(bracket: Bracket, marks: Marks) -> Array:
    """Bool [N]: whether an end is known and below the tops, and it is asked what chunks weigh."""
    is_deep = ~(end_value(bracket, marks) > marks.top_floor) & (marks.top_floor > -jnp.inf)
    return (marks.status == ASKED) & is_deep & ~is_open(bracket)


def search(
    bracket: Bracket,
    marks: Marks,
    left: Array,
    sums: Array,
    logits: Array,
    weigh: Callable[[Row, Array], Array],
) -> tuple[Bracket, Marks, Array]:
    """Close brackets of logits [N, V], clean or not, and tell what their chunks weigh if asked.

    Nearly all that is kept ends among the tops. Where it does not, passes over all logits follow,
    until few are left above an end: then the tops of these.

    Args:
      bracket: of targets above 0.
      marks: what is known of the tops of lanes.
      left: those.
      sums: as in `State`, where they are told.
      weigh: gives weights uint32 that are never less for a larger logit, but for rounding; a
        scalar if all logits weigh the same.

    Returns:
      brackets whose `low` is the largest number such that the weights of all from it upwards reach
      the target. If not even all reach it, either -inf or the least.
    """

    def look(state: State, logits: Array) -> State:
        own, notes, left, sums = state
        x = to_chunks(clean(logits))

        def narrow() -> State:
            now, mark = unpacked(own, bracket), unpacked(notes, marks)
            now, few = dive(now, Tops(left, mark.floor), x, lambda x: weigh(mark.row, x))
            notes_now = packed(mark._replace(floor=few.floor, base=now.above))
            return packed(now), notes_now, few.logits, sums

        def tell() -> State:
            now, mark = unpacked(own, bracket), unpacked(notes, marks)
            if mark.cut is not None:
                light, threshold = mark.cut
                light = lax.cond(
                    jnp.any(threshold > 0),
                    lambda: first_light(x, row_weights(mark.row, x), threshold),
                    lambda: light,
                )
                mark = mark._replace(cut=Cut(light, threshold))
            told = mark._replace(status=jnp.full_like(mark.status, TOLD))
            return own, packed(told), left, stacked(weigh_above(x, mark.row, end_value(now, mark)))

        is_any_below = jnp.any(is_below(unpacked(own, bracket), unpacked(notes, marks)))
        result: State = lax.cond(is_any_below, narrow, tell)
        return result

    def unfinished(state: State) -> Array:
        now, mark = unpacked(state[0], bracket), unpacked(state[1], marks)
        return jnp.any(is_open(now) | is_to_tell(now, mark))

    def body(state: State) -> State:
        own, notes, left, sums = state
        mark = unpacked(notes, marks)
        few = Tops(left, mark.floor)
        now = settle(unpacked(own, bracket), few, mark.base, lambda x: weigh(mark.row, x))
        state = packed(now), notes, left, sums
        if left.size >= logits.size:  # nothing is below them
            return state
        return where_wanted(look, is_below(now, mark) | is_to_tell(now, mark), state, logits)

    state = packed(bracket), packed(marks), left, sums
    own, notes, _, sums = lax.while_loop(unfinished, body, state)
    return unpacked(own, bracket), unpacked(notes, marks), sums
