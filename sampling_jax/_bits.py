"""Randomness: 64 bits a draw, from one key for the batch or one key a row."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def check_key(key: Any, batch: tuple[int, ...]) -> Array:
    """A typed key array of shape [] or `batch`, from a typed or a legacy uint32 key."""
    cure = "make one with jax.random.key(seed), or one per row with jax.random.split"
    dtype = key.dtype if isinstance(key, jax.Array | np.ndarray) else None
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not is_typed and dtype != jnp.uint32:
        got = type(key).__name__ if dtype is None else f"an array of dtype {dtype}"
        raise TypeError(f"key must be a JAX PRNG key, got {got}; {cure}.")
    try:
        keys: Array = key if is_typed else jax.random.wrap_key_data(jnp.asarray(key))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"key must hold the words of a legacy PRNG key in its last axis, got shape "
            f"{key.shape}; {cure}, or of another kind with jax.random.wrap_key_data."
        ) from error
    if keys.shape not in ((), batch):
        raise ValueError(
            f"key must be one key or one for each row, of shape () or {batch}, got shape "
            f"{keys.shape}; {cure}."
        )
    return keys


def random_bits(key: Array, batch: tuple[int, ...], each: tuple[int, ...] = ()) -> Array:
    """uint32 [*batch, *each, 2]; a row with a key of its own gets the same bits in any batch."""
    if key.shape == ():
        return jax.random.bits(key, (*batch, *each, 2), jnp.uint32)

    def row_bits(row: Array) -> Array:
        return jax.random.bits(row, (*each, 2), jnp.uint32)

    keys = key.reshape(math.prod(batch))
    # JAX draws other bits from rbg keys under vmap than from each of them alone.
    is_threefry = "fry" in str(jax.random.key_impl(key))
    rows = jax.vmap(row_bits)(keys) if is_threefry else lax.map(row_bits, keys)
    return rows.reshape(*batch, *each, 2)
