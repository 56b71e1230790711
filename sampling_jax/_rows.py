"""One batch axis: `jax.vmap` of a function of rows is the same function of more rows."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

FEW = 2**17  # tokens of so many rows are searched at once on CPU

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

    On CPU a few rows after another, so that others cost nothing.
    """

    def mixed(wanted: Array, otherwise: Rows, *args: Any) -> Rows:
        def mix(new: Array, old: Array) -> Array:
            return jnp.where(per_row(wanted, new), new, old)

        result: Rows = jax.tree.map(mix, function(*args, wanted), otherwise)
        return result

    def whole(*rows: Any) -> Rows:
        result: Rows = lax.cond(
            jnp.any(rows[0]), mixed, lambda _, otherwise, *args: otherwise, *rows
        )
        return result

    def by_parts(*rows: Any) -> Rows:
        def part(i: Array, result: Rows) -> Rows:
            start = jnp.minimum(i * size, n - size)  # the last part may overlap the one before it

            def few(a: Array) -> Array:
                return taken(lambda a: lax.dynamic_slice_in_dim(a, start, size), a)

            def put(all_rows: Array, new: Array) -> Array:
                return lax.dynamic_update_slice_in_dim(all_rows, new, start, 0)

            def replaced() -> Rows:
                new = mixed(*jax.tree.map(few, (rows[0], result, *rows[2:])))
                replaced: Rows = jax.tree.map(put, result, new)
                return replaced

            chosen: Rows = lax.cond(jnp.any(few(rows[0])), replaced, lambda: result)
            return chosen

        result: Rows = lax.fori_loop(0, -(-n // size), part, rows[1])
        return result

    n = len(wanted)
    size = max(1, FEW // max(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(args)))
    rows = (wanted, otherwise, *args)
    if n <= size:
        return whole(*rows)
    result: Rows = lax.platform_dependent(*rows, cpu=by_parts, default=whole)
    return result
