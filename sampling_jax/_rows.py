"""One batch axis: `jax.vmap` of a function of rows is the same function of more rows."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
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


def per_row(value: Array, like: Array) -> Array:
    """[N] reshaped to broadcast against [N, ...]."""
    return value.reshape(value.shape + (1,) * (like.ndim - 1))


def taken(take: Callable[[Array], Array], x: Array) -> Array:
    """`take(x)`, a part of x; narrow floats as integers, or XLA first widens all of x on CPU."""
    if x.dtype.itemsize >= 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        return take(x)
    bits = {1: jnp.uint8, 2: jnp.uint16}[x.dtype.itemsize]
    return lax.bitcast_convert_type(take(lax.bitcast_convert_type(x, bits)), x.dtype)


def fold_vmap(function: Callable[..., Rows]) -> Callable[..., Rows]:
    """`function` of arrays [N, ...], so that under vmap a branch still runs for the whole batch.

    Without this `lax.cond` would run both branches, and vmap of a row would cost several times
    the batched call.
    """
    folded = custom_vmap(function)

    @folded.def_vmap
    def _rule(size: int, batched: Any, *args: Any) -> tuple[Rows, Any]:
        def fold(value: Array, is_batched: bool) -> Array:
            value = value if is_batched else jnp.broadcast_to(value, (size, *value.shape))
            return value.reshape(size * value.shape[1], *value.shape[2:])

        def unfold(value: Array) -> Array:
            return value.reshape(size, len(value) // size, *value.shape[1:])

        if size == 0:  # as of one, and none of it
            one = jax.tree.map(
                lambda a, b: jnp.zeros((1, *a.shape[1:]), a.dtype) if b else a, args, tuple(batched)
            )
            result, is_batched = _rule(1, batched, *one)
            return jax.tree.map(lambda a: a[:0], result), is_batched
        result = jax.tree.map(unfold, folded(*jax.tree.map(fold, args, tuple(batched))))
        return result, jax.tree.map(lambda _: True, result)

    return folded


def where_wanted(function: Callable[..., Rows], wanted: Array, otherwise: Rows, *args: Any) -> Rows:
    """`function(*args, wanted)` of arrays [N, ...] in the rows bool [N] wanted, else `otherwise`.

    On CPU one row after another, so that those not wanted cost nothing.
    """

    def whole(wanted: Array, otherwise: Rows, *args: Any) -> Rows:
        def mix(new: Array, old: Array) -> Array:
            return jnp.where(wanted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        def mixed() -> Rows:
            result: Rows = jax.tree.map(mix, function(*args, wanted), otherwise)
            return result

        result: Rows = lax.cond(jnp.any(wanted), mixed, lambda: otherwise)
        return result

    def by_rows(wanted: Array, otherwise: Rows, *args: Any) -> Rows:
        def row(i: Array, result: Rows) -> Rows:
            def put(rows: Array, new: Array) -> Array:
                return lax.dynamic_update_slice_in_dim(rows, new, i, 0)

            def one(a: Array) -> Array:
                return taken(lambda a: lax.dynamic_slice_in_dim(a, i, 1), a)

            def replaced() -> Rows:
                new = function(*jax.tree.map(one, (*args, wanted)))
                replaced: Rows = jax.tree.map(put, result, new)
                return replaced

            chosen: Rows = lax.cond(wanted[i], replaced, lambda: result)
            return chosen

        result: Rows = lax.fori_loop(0, len(wanted), row, otherwise)
        return result

    if len(wanted) == 1:
        return whole(wanted, otherwise, *args)
    result: Rows = lax.platform_dependent(wanted, otherwise, *args, cpu=by_rows, default=whole)
    return result
