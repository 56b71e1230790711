"""What a prefix weighs, in all and in each chunk."""

import jax.numpy as jnp
from jax import Array

from sampling_jax import _wide
from sampling_jax._chunks import sums_and_counts
from sampling_jax._locate import Prefix
from sampling_jax._rows import per_row
from sampling_jax._weights import Row, row_weights
from sampling_jax._where import where
from sampling_jax._wide import Wide


def weigh_above(x: Array, row: Row, value: Array) -> tuple[Wide, Array]:
    """Of each chunk of x, the weights of all logits above a value and how many are equal to it.

    Args:
      value: float32 [N].

    Returns:
      wide [N, chunks] and uint32 [N, chunks].
    """
    bound = per_row(value, x)
    weights = where(x > bound, row_weights(row, x), 0)
    return sums_and_counts(weights, x == bound)


def stacked(sums: tuple[Wide, Array]) -> Array:
    """uint32 [N, 3, chunks] of wide [N, chunks] and uint32 [N, chunks]."""
    (high, low), counts = sums
    return jnp.stack([high, low, counts], axis=1)


def unstacked(sums: Array) -> tuple[Wide, Array]:
    """What was stacked."""
    return (sums[:, 0], sums[:, 1]), sums[:, 2]


def kept_sums(prefix: Prefix) -> tuple[Wide, Array]:
    """Wide [N], the weights above the end, and uint32 [N], how many equal to it are kept: top_k may
    ask for more than there are.
    """
    high, low, tied = _wide.sums(*prefix.above, prefix.tied, axes=(1,))
    return _wide.carry(high, low), jnp.minimum(prefix.end.ties, tied)


def mass(prefix: Prefix, row: Row) -> Wide:
    """Wide [N], the weights of all that is kept."""
    above, ties = kept_sums(prefix)
    return _wide.add(above, _wide.times(ties, row_weights(row, prefix.end.value)))
