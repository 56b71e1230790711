"""Probabilities of tokens as integers, of which differences are exact."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._chunks import chunk_sums, to_chunks
from sampling_jax._process import kept_rows
from sampling_jax._rows import per_row
from sampling_jax._weights import Row, clean, row_weights, scale
from sampling_jax._where import where


class Distribution(NamedTuple):
    """M rows to draw from, as their kept logits and what turns those into integers."""

    x: Array  # float32 [M, chunks, rows, lanes]; -inf for what is not kept
    row: Row
    unit: Array  # float32 [M], weights to probabilities


def distribution_of(logits: Array, settings: RowSettings) -> Distribution:
    """Of logits [N, positions, V], M = N * positions, and settings [N]."""
    # Tokens have no gradient, and asking for one through them must not fail.
    logits, settings = lax.stop_gradient((logits, settings))
    n, positions, vocabulary = logits.shape
    x = logits.reshape(n * positions, vocabulary)
    settings = jax.tree.map(lambda value: jnp.repeat(value, positions), settings)
    x = to_chunks(where(kept_rows(x, settings), clean(x), -jnp.inf))
    top = jnp.max(x, axis=(1, 2, 3))
    # With any finite top, a row of nothing weighs nothing.
    row = Row(where(top > -jnp.inf, top, 0), scale(settings.temperature))
    total = _wide.add_up(chunk_sums(row_weights(row, x)), axes=(1,))
    # log2(e) / total is correctly rounded everywhere, and its factor is common to all p and q.
    unit = scale(jnp.maximum(_wide.approximate(total), 1)) * 2**30
    return Distribution(x, row, unit)


def probability(distribution: Distribution, x: Array) -> Array:
    """uint32 below 2**31 of kept logits x [M, ...]: in units of 2**-30 / log2(e), rounded down."""
    weights = row_weights(distribution.row, x).astype(jnp.float32)
    result: Array = (weights * per_row(distribution.unit, x)).astype(jnp.uint32)
    return result


def probability_of(distribution: Distribution, ids: Array) -> Array:
    """uint32 of ids [N, positions]; 0 of what is no id."""
    x = distribution.x.reshape(ids.size, -1)
    flat = ids.reshape(ids.size, 1)
    at_id = jnp.take_along_axis(x, jnp.maximum(flat, 0), axis=1)
    at_id = where(flat >= 0, at_id, -jnp.inf)
    return probability(distribution, at_id).reshape(ids.shape)
