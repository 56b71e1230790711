"""What a search knows of each row, and keeps in few arrays."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from sampling_jax._bracket import Bracket, is_open, rank, value_of
from sampling_jax._rows import packed, unpacked
from sampling_jax._weights import Row
from sampling_jax._wide import Wide

ASKED, TOLD = 1, 2


class Cut(NamedTuple):
    """What min_p drops."""

    light: Array  # float32 [N], the largest logit too light for it that has been seen
    threshold: Array  # uint32 [N], the least weight that it keeps; 0 if not to apply it


class Marks(NamedTuple):
    """What is known beside a bracket, and does not change with it."""

    floor: Array  # float32 [N], of the tops of what is left
    base: Wide  # wide [N], the weights of all above those
    top_floor: Array  # float32 [N], of the tops of columns
    status: Array  # uint32 [N], ASKED where sums are wanted and not known, TOLD where known, or 0
    row: Row
    cut: Cut | None  # None if there is no min_p


class Known(NamedTuple):
    """What a search knows of N rows."""

    bracket: Bracket
    marks: Marks


Bits = tuple[Array, Array]  # a bracket and marks, each packed
Weigh = Callable[[Row, Array], Array]  # gives uint32 weights of logits [N, ...], or one of each


def bits_of(known: Known) -> Bits:
    """The same, packed."""
    return packed(known.bracket), packed(known.marks)


def known_of(bits: Bits, like: Known) -> Known:
    """What was packed."""
    return Known(unpacked(bits[0], like.bracket), unpacked(bits[1], like.marks))


def least_of(floor: Array) -> Array:
    """Ranks int32 [N]: tops hold all from these upwards."""
    return rank(floor) + 1


def is_within(bracket: Bracket, marks: Marks) -> Array:
    """Bool [N]: whether it is open, and the tops of what is left may tell more of the end."""
    return is_open(bracket) & (bracket.high > least_of(marks.floor))


def end_value(bracket: Bracket, marks: Marks) -> Array:
    """float32 [N], what the prefix is above."""
    value = value_of(bracket.low)
    return value if marks.cut is None else jnp.maximum(value, marks.cut.light)


def is_below(bracket: Bracket, marks: Marks) -> Array:
    """Bool [N]: whether it is open, and the end not among the tops of what is left."""
    return is_open(bracket) & ~is_within(bracket, marks)


def is_to_tell(bracket: Bracket, marks: Marks) -> Array:
    """Bool [N]: whether an end is known and below the tops, and it is asked what chunks weigh."""
    is_deep = ~(end_value(bracket, marks) > marks.top_floor) & (marks.top_floor > -jnp.inf)
    return (marks.status == ASKED) & is_deep & ~is_open(bracket)
