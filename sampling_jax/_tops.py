"""The largest few of each column: where nearly every prefix that is kept ends."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

DEPTH = 4  # the tops kept of each column of 32 logits


class Tops(NamedTuple):
    """The largest few of each column or lane of logits: all of them above `floor`."""

    logits: Array  # float32 [N, chunks or groups of them, depth, lanes]
    floor: Array  # float32 [N]; -inf where there is nothing beyond


def column_tops(x: Array) -> Tops:
    """The tops of x [N, chunks, rows, lanes]."""
    rows = x.shape[2]
    if rows <= DEPTH:
        return Tops(x, jnp.full_like(x[:, 0, 0, 0], -jnp.inf))
    # One reduce over sorted quarters of a column: as separate results, each would cost as much.
    quarters = _sort([x[:, :, i * rows // 4 : (i + 1) * rows // 4] for i in range(4)])
    start = [jnp.float32(-jnp.inf)] * DEPTH
    tops = jnp.stack(lax.reduce(quarters, start, _largest, (2,)), axis=2)
    return Tops(tops, jnp.max(tops[:, :, -1], axis=(1, 2)))


def lane_tops(tops: Tops) -> Tops:
    """The tops of the lanes of up to 16 chunks, twice as deep, from those of their columns."""
    x, floor = tops
    n, chunks, depth, lanes = x.shape
    if chunks <= 2:
        return tops
    groups = -(-chunks // 16)
    half = -(-chunks // (2 * groups))
    padding = ((0, 0), (0, 2 * half * groups - chunks), (0, 0), (0, 0))
    x = jnp.pad(x, padding, constant_values=-jnp.inf).reshape(n, groups, 2, half, depth, lanes)
    order = [(0, i) for i in range(depth)] + [(1, i) for i in reversed(range(depth))]
    merged = _merge([x[:, :, side, :, i] for side, i in order])
    start = [jnp.float32(-jnp.inf)] * len(merged)
    x = jnp.stack(lax.reduce(merged, start, _largest, (2,)), axis=2)
    return Tops(x, jnp.maximum(floor, jnp.max(x[:, :, -1], axis=(1, 2))))


def _exchange(x: list[Array], i: int, j: int) -> None:
    """Let x[i] >= x[j]."""
    is_greater = x[i] > x[j]
    x[i], x[j] = jnp.where(is_greater, x[i], x[j]), jnp.where(is_greater, x[j], x[i])


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
    return _merge([jnp.where(m > n, m, n) for m, n in zip(a, reversed(b), strict=True)])
