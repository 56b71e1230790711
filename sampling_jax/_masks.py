"""Sets of tokens in one bit each: bit j of word w is token 32 * w + j."""

import jax.numpy as jnp
from jax import Array, lax


def pack(mask: Array) -> Array:
    """uint32 [..., ceil(V / 32)] from bool [..., V]."""
    *batch, size = mask.shape
    padded = jnp.pad(mask, [(0, 0)] * len(batch) + [(0, -size % 32)])
    bits = padded.reshape(*batch, -(-size // 32), 32).astype(jnp.uint32)
    return jnp.sum(bits << _positions(bits), axis=-1, dtype=jnp.uint32)


def unpack(words: Array, size: int) -> Array:
    """Bool [..., size] from uint32 [..., W]; what is beyond the words is not in the set."""
    *batch, count = words.shape
    words = words[..., None]
    mask = ((words >> _positions(words)) & 1).astype(bool).reshape(*batch, 32 * count)
    missing = max(size - 32 * count, 0)
    return jnp.pad(mask[..., :size], [(0, 0)] * len(batch) + [(0, missing)])


def _positions(words: Array) -> Array:
    """uint32 [..., 32]."""
    return lax.broadcasted_iota(jnp.uint32, (*words.shape[:-1], 32), words.ndim - 1)
