"""The largest few of each column: where nearly every prefix that is kept ends."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax._chunks import LANES, in_chunks
from sampling_jax._weights import clean, numbers
from sampling_jax._where import where

DEPTH = 4  # the tops kept of each column of 32 logits


class Tops(NamedTuple):
    """The largest few of each column or lane of logits: all of them above `floor`."""

    logits: Array  # float32 [N, chunks or groups of them, depth, lanes]
    floor: Array  # float32 [N]; -inf where there is nothing beyond


def column_tops(logits: Array) -> Tops:
    """The tops of logits [N, V], clean or not."""
    tops = clean(in_chunks(logits, _columns))
    if logits.shape[1] <= DEPTH * LANES:
        return Tops(tops, jnp.full_like(tops[:, 0, 0, 0], -jnp.inf))
    return Tops(tops, jnp.max(tops[:, :, -1], axis=(1, 2)))


def _columns(x: Array) -> Array:
    """float32 [N, chunks, depth, lanes] of x [N, chunks, rows, lanes]."""
    return numbers(x) if x.shape[2] <= DEPTH else _stacked(_fours(x))


def _fours(x: Array) -> list[Array]:
    """The same as DEPTH arrays [N, chunks, lanes], of more rows than that."""
    n, chunks, rows, lanes = x.shape
    # In two steps, as a compiler makes a slow loop of more work at once; along 4 at first that
    # writes half as much as along 2, but narrow logits take more work each.
    first = 4 if x.dtype.itemsize == 4 and rows % 16 == 0 else 2
    # One reduce over sorted quarters of a column: as separate results, each would cost as much.
    quarters = numbers(x).reshape(n, chunks, rows // (4 * first), 4, first, lanes)
    sorted_fours = _sort([quarters[:, :, :, i] for i in range(4)])
    return largest_of(largest_of(sorted_fours, 3), 2)


def lane_tops(tops: Tops) -> Tops:
    """The tops of the lanes of up to 16 chunks, twice as deep, from those of their columns."""
    x, floor = tops
    n, chunks, depth, lanes = x.shape
    if chunks <= 2:
        return tops
    groups = -(-chunks // 16)
    quarter = -(-chunks // (4 * groups))
    padding = ((0, 0), (0, 4 * quarter * groups - chunks), (0, 0), (0, 0))
    x = jnp.pad(x, padding, constant_values=-jnp.inf)
    x = x.reshape(n, groups, 2, quarter, 2, depth, lanes)
    order = [(0, i) for i in range(depth)] + [(1, i) for i in reversed(range(depth))]
    merged = _merge([x[:, :, side, :, :, i] for side, i in order])
    largest = largest_of(largest_of(merged, 3), 2)
    return Tops(_stacked(largest), jnp.maximum(floor, jnp.max(largest[-1], axis=(1, 2))))


def tops_of_few(x: Array, like: Array) -> Tops:
    """The tops of clean x [N, chunks, rows, lanes], most of it -inf, in the shape of tops of lanes.

    They are those of the columns of some chunks together, which is less to compile.
    """
    n, chunks, _, lanes = x.shape
    if chunks <= 2:
        return column_tops(x.reshape(n, -1))
    groups = math.prod(like.shape[1:]) // (DEPTH * lanes)
    size = -(-chunks // groups)
    padding = [(0, 0, 0), (0, size * groups - chunks, 0), (0, 0, 0)]
    parts = [lax.pad(part, jnp.float32(-jnp.inf), padding) for part in _fours(x)]
    largest = largest_of([part.reshape(n, groups, size, lanes) for part in parts], 2)
    return Tops(_stacked(largest).reshape(like.shape), jnp.max(largest[-1], axis=(1, 2)))


def largest_of(lists: Sequence[Array], axis: int, least: float = -jnp.inf) -> list[Array]:
    """The largest along an axis, sorted, as many as there are in each of the sorted lists."""
    start = [jnp.asarray(least, lists[0].dtype)] * len(lists)
    result: list[Array] = lax.reduce(list(lists), start, _largest, (axis,))
    return result


def _stacked(parts: list[Array]) -> Array:
    """[N, n, parts, lanes] of arrays [N, n, lanes]."""
    # As `jnp.stack`, which takes a compiler three times as long.
    n, chunks, lanes = parts[0].shape
    return lax.concatenate(parts, 2).reshape(n, chunks, len(parts), lanes)


def _exchange(x: list[Array], i: int, j: int) -> None:
    """Let x[i] >= x[j]."""
    is_greater = x[i] > x[j]
    x[i], x[j] = where(is_greater, x[i], x[j]), where(is_greater, x[j], x[i])


def _sort(x: list[Array]) -> list[Array]:
    """Four arrays, sorted element by element, the largest first."""
    for i, j in ((0, 1), (2, 3), (0, 2), (1, 3), (1, 2)):
        _exchange(x, i, j)
    return x


def _merge(x: list[Array]) -> list[Array]:
    """A power of two of arrays that fall, then rise, element by element: sorted."""
    half = len(x) // 2
    while half:
        for i in range(len(x)):
            if not i & half:
                _exchange(x, i, i + half)
        half //= 2
    return x


def _largest(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    """The larger half of two sorted lists, sorted."""
    return _merge([where(m > n, m, n) for m, n in zip(a, reversed(b), strict=True)])
