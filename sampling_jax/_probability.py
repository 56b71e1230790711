"""Probabilities of tokens as integers, of which differences are exact."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._kept import Last, is_kept, weighed
from sampling_jax._rows import per_row, taken
from sampling_jax._weights import Row, clean, plain, row_weights, scale
from sampling_jax._where import where


class Distribution(NamedTuple):
    """M rows to draw from."""

    logits: Array  # float32, or narrower, [M, V]
    row: Row
    last: Last
    unit: Array  # float32 [M], weights to probabilities


def distribution_of(logits: Array, settings: RowSettings) -> Distribution:
    """Of logits [N, positions, V], M = N * positions, and settings [N]."""
    # Tokens have no gradient, and asking for one through them must not fail.
    logits, settings = lax.stop_gradient((logits, settings))
    n, positions, vocabulary = logits.shape
    x = plain(logits).reshape(n * positions, vocabulary)
    settings = jax.tree.map(lambda value: jnp.repeat(value, positions), settings)
    row, last, total = weighed(x, settings)
    # log2(e) / total is correctly rounded everywhere, and its factor is common to all p and q.
    unit = scale(jnp.maximum(_wide.approximate(total), 1)) * 2**30
    return Distribution(x, row, last, unit)


def kept_weights(distribution: Distribution, x: Array, ids: Array) -> Array:
    """uint32 weights of clean logits x [M, ...] of tokens [M or 1, ...]; 0 of what is dropped."""
    _, row, last, _ = distribution
    return where(is_kept(last, x, ids), row_weights(row, x), 0)


def probability(distribution: Distribution, weights: Array) -> Array:
    """uint32 below 2**31 of weights [M, ...]: in units of 2**-30 / log2(e), rounded down."""
    result: Array = weights.astype(jnp.float32) * per_row(distribution.unit, weights)
    return result.astype(jnp.uint32)


def probability_of(distribution: Distribution, ids: Array) -> Array:
    """uint32 of ids [N, positions]; 0 of what is no id."""
    flat = ids.reshape(ids.size, 1)
    place = jnp.maximum(flat, 0)
    x = taken(lambda x: jnp.take_along_axis(x, place, axis=1), distribution.logits)
    weights = where(flat >= 0, kept_weights(distribution, clean(x), flat), 0)
    return probability(distribution, weights).reshape(ids.shape)
