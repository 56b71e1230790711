"""The most likely token of each row, for batches where all rows want no other."""

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax._chunks import chunk_maxima, chunk_of, ids_of
from sampling_jax._rows import per_row
from sampling_jax._weights import plain
from sampling_jax._where import where


def most_likely(logits: Array) -> Array:
    """int32 [N], the first of the largest logits [N, V]; -1 where there is none.

    One pass over them, and a look at the first chunk with the largest.
    """
    logits = plain(logits)
    maxima = lax.optimization_barrier(chunk_maxima(logits))  # or a second reduce starts over
    top = jnp.max(maxima, axis=1)
    start, x, is_own = chunk_of(logits, lax.argmax(maxima, 1, jnp.int32))
    ids = per_row(start, x) + ids_of(x)
    is_top = is_own & (x == per_row(top, x))
    first = jnp.min(where(is_top, ids, logits.shape[1]), axis=(1, 2))
    return where(top > -jnp.inf, first, -1)
