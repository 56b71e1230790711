"""One batch axis: `jax.vmap` of a function of rows is the same function of more rows."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

Rows = TypeVar("Rows")  # a pytree of arrays


def alike(values: Rows) -> Rows:
    """Arrays [N], all varying over the axes of `jax.shard_map` that any of them varies over.

    The branches of a `lax.cond` must agree in that, also where they use different arguments.
    """
    zeros = [jnp.zeros_like(value, jnp.int32) for value in jax.tree.leaves(values)]
    zero = sum(zeros[1:], zeros[0])
    result: Rows = jax.tree.map(lambda value: value + zero.astype(value.dtype), values)
    return result


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
            return value.reshape(size * value.shape[1], *value.shape[2:])

        result = folded(*jax.tree.map(fold, args, tuple(batched)))
        rows = len(result) // max(size, 1)
        return result.reshape(size, rows, *result.shape[1:]), True

    return folded
