"""Where the end of a text has occurred in it before."""

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax._checks import column, matrix
from sampling_jax._rows import alike, fold_vmap
from sampling_jax._where import where

NOTHING = -1  # a token that equals no other, itself included


def text_of(
    tokens: Array, length: Array, batch: tuple[int, ...], vocabulary: int
) -> tuple[Array, Array]:
    """int32 [N, L], ids outside the vocabulary as NOTHING; and its lengths [N, 1]."""
    text = matrix(tokens, batch)
    text = where((text >= 0) & (text < vocabulary), text, NOTHING)
    return text, jnp.clip(column(length, batch), 0, text.shape[1])


def within(text: Array, end: Array) -> Array:
    """Bool [N, L]."""
    return lax.broadcasted_iota(jnp.int32, text.shape, 1) < end


@fold_vmap
def match_lengths(text: Array, end: Array, limit: Array) -> Array:
    """int32 [N, L]: how many tokens before each position equal those before the end.

    Args:
      text: int32 [N, L], read before `end`.
      end: int32 [N, 1], in [0, L].
      limit: int32 [N, 1]; a longer match may count as one of this length, or of any above.
    """
    end, limit, _ = alike((end, limit, jnp.sum(text, axis=1, keepdims=True, dtype=jnp.int32)))
    text = text + jnp.zeros_like(end)
    size = text.shape[1]
    read = within(text, end)
    padded = jnp.pad(text, ((0, 0), (size, 0)), constant_values=NOTHING)

    def matching(state: tuple[Array, Array]) -> Array:
        n, lengths = state
        return jnp.any(read & (lengths == n) & (n < limit))

    def extend(state: tuple[Array, Array]) -> tuple[Array, Array]:
        n, lengths = state
        before = lax.dynamic_slice_in_dim(padded, size - 1 - n, size, axis=1)
        last = jnp.take_along_axis(padded, size + end - 1 - n, axis=1)
        longer = (lengths == n) & (before == last) & (last != NOTHING)
        return n + 1, lengths + longer.astype(jnp.int32)

    start = jnp.int32(0), jnp.zeros_like(text)
    lengths: Array = lax.while_loop(matching, extend, start)[1]
    return lengths
