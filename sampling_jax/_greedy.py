"""The most likely token of each row, for batches where all rows want no other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from sampling_jax._blocks import LANES, ROWS
from sampling_jax._rows import taken
from sampling_jax._weights import clean


def most_likely(logits: Array) -> Array:
    """int32 [N], the first of the largest logits [N, V]; -1 where there is none.

    One pass over them, and a look at the chunk with the largest.
    """
    n, v = logits.shape
    size = min(v, ROWS * LANES)
    whole = v - v % size
    parts = [taken(lambda x: x[:, :whole].reshape(n, whole // size, size), logits)]
    if whole < v:
        parts.append(logits[:, None, whole:])

    def of_each(reduce: Callable[..., Array], parts: list[Array]) -> Array:
        """float32 [N, chunks]; behind a barrier, or a reduce of that would start over."""
        results = [reduce(part.astype(jnp.float32), axis=2) for part in parts]
        result: Array = lax.optimization_barrier(jnp.concatenate(results, axis=1))
        return result

    # NaN is rare, and shows in a sum: a maximum may lose it.
    largest = of_each(jnp.max, parts)
    largest = lax.cond(
        jnp.any(jnp.isnan(of_each(jnp.sum, parts))),
        lambda: of_each(jnp.max, [clean(part) for part in parts]),
        lambda: clean(largest),
    )
    top = jnp.max(largest, axis=1)
    # The last may begin inside the one before it, where no logit is as large.
    start = jnp.minimum(lax.argmax(largest, 1, jnp.int32) * size, v - size)

    def chunk_of(row: Array, start: Array) -> Array:
        return lax.dynamic_slice_in_dim(row, start, size)

    chunk = taken(lambda x: jax.vmap(chunk_of)(x, start), logits)
    ids = start[:, None] + lax.iota(jnp.int32, size)[None, :]
    first = jnp.min(jnp.where(clean(chunk) == top[:, None], ids, v), axis=1)
    return jnp.where(top > -jnp.inf, first, -1)
