"""How surprising tokens are, in bits: distances to the most likely token, and their mean."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from sampling_jax import _wide
from sampling_jax._chunks import chunk_sums, to_chunks
from sampling_jax._rows import alike, per_row
from sampling_jax._weights import Row, clean, divide, row_weights
from sampling_jax._where import where
from sampling_jax._wide import Wide
from sampling_jax.reference import LOG2_E


class Scored(NamedTuple):
    """Rows of logits as they are, at temperature 1."""

    x: Array  # float32 [N, chunks, rows, lanes], clean
    row: Row
    weights: Array  # uint32, of the shape of x
    total: Wide  # wide [N]


def scored(logits: Array, values: Array) -> tuple[Scored, Array]:
    """Of logits [N, V]; values [N] beside them come back varying over devices alike."""
    x = to_chunks(clean(logits))
    values, top = alike((values, jnp.max(x, axis=(1, 2, 3))))
    row = Row(top, jnp.full_like(top, LOG2_E))
    weights = where(x > -jnp.inf, row_weights(row, x), 0)
    return Scored(x, row, weights, _wide.add_up(chunk_sums(weights), axes=(1,))), values


def surprise(rows: Scored) -> Array:
    """float32 of the shape of x: how many bits less likely than the most likely token."""
    top = per_row(rows.row.top, rows.x)
    return where(rows.x == top, jnp.float32(0), (top - rows.x) * LOG2_E)


def mean_surprise(rows: Scored) -> Array:
    """float32 [N], the mean over what is drawn: the entropy, but for log2 of the largest chance."""
    each = jnp.minimum(surprise(rows), 31)
    parts = (rows.weights.astype(jnp.float32) * each).astype(jnp.uint32)
    weighted = _wide.approximate(_wide.add_up(chunk_sums(parts), axes=(1,)))
    quotient = divide(jnp.maximum(weighted, 1), jnp.maximum(_wide.approximate(rows.total), 1))
    return where(weighted > 0, quotient, 0)


def flat(x: Array, vocabulary: int) -> Array:
    """[N, V] from [N, chunks, rows, lanes]."""
    return x.reshape(x.shape[0], -1)[:, :vocabulary]
