"""One batch axis: `jax.vmap` of a function of rows is the same function of more rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap


def fold_vmap(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` of arrays [N, ...], so that under vmap a branch still runs for the whole batch.

    Without this `lax.cond` would run both branches, and vmap of a row would cost several times
    the batched call.
    """
    folded = custom_vmap(function)

    @folded.def_vmap
    def _rule(size: int, batched: Any, *args: Any) -> tuple[Array, bool]:
        def fold(value: Array, is_batched: bool) -> Array:
            value = value if is_batched else jnp.broadcast_to(value, (size, *value.shape))
            return value.reshape(-1, *value.shape[2:])

        result = folded(*jax.tree.map(fold, args, tuple(batched)))
        return result.reshape(size, -1, *result.shape[1:]), True

    return folded
