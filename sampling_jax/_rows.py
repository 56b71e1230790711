"""One batch axis: `jax.vmap` of a function of rows is the same function of more rows."""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from sampling_jax._device import by_device
from sampling_jax._where import where

GROUP, GPU_GROUP = 2**17, 2**22  # tokens of rows that are searched at once, on CPU and on a GPU

Rows = TypeVar("Rows")  # a pytree of arrays
Function = TypeVar("Function", bound=Callable[..., Any])


def traced_once(function: Function) -> Function:
    """`function` of arrays, traced once for each shape however often it is called."""
    return cast(Function, jax.jit(function))


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


def at(x: Array, place: Array) -> Array:
    """[N] of x [N, n], at int32 [N] in each row, or at the nearest there is."""
    place = jnp.clip(place, 0, x.shape[1] - 1)
    return x.at[lax.iota(jnp.int32, x.shape[0]), place].get(mode="promise_in_bounds")


def taken(take: Callable[[Array], Array], x: Array) -> Array:
    """`take(x)`, a part of x; narrow floats as integers, or XLA first widens all of x on CPU."""
    if x.dtype.itemsize >= 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        return take(x)
    bits = {1: jnp.uint8, 2: jnp.uint16}[x.dtype.itemsize]
    return lax.bitcast_convert_type(take(lax.bitcast_convert_type(x, bits)), x.dtype)


def rows_at(ids: Array, values: Rows) -> Rows:
    """The rows of integer numbers [n], all below N, of arrays [N, ...]."""

    def rows_of(value: Array) -> Array:
        return taken(lambda x: x.at[ids].get(mode="promise_in_bounds"), value)

    result: Rows = jax.tree.map(rows_of, values)
    return result


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
            return value.reshape(size, value.shape[0] // size, *value.shape[1:])

        if size == 0:  # as of one, and none of it
            one = jax.tree.map(
                lambda a, b: jnp.zeros((1, *a.shape[1:]), a.dtype) if b else a, args, tuple(batched)
            )
            result, is_batched = _rule(1, batched, *one)
            return jax.tree.map(lambda a: a[:0], result), is_batched
        result = jax.tree.map(unfold, folded(*jax.tree.map(fold, args, tuple(batched))))
        return result, jax.tree.map(lambda _: True, result)

    return folded


def packed(rows: Any) -> Array:
    """uint32 [N, n], the bits of arrays [N, ...] of 32 bits, side by side."""
    bits = [_as_bits(leaf, jnp.uint32) for leaf in jax.tree.leaves(rows)]
    bits = [lax.reshape(leaf, (leaf.shape[0], math.prod(leaf.shape[1:]))) for leaf in bits]
    return lax.concatenate(bits, 1)


def unpacked(bits: Array, like: Rows) -> Rows:
    """What was packed, or the first of it: as arrays [N, ...], but for N."""
    leaves, tree = jax.tree.flatten(like)
    sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]
    parts = lax.split(bits, [*sizes, bits.shape[1] - sum(sizes)], axis=1)
    values = [
        _as_bits(lax.reshape(part, (bits.shape[0], *leaf.shape[1:])), leaf.dtype)
        for part, leaf in zip(parts, leaves)
    ]
    result: Rows = jax.tree.unflatten(tree, values)
    return result


def _as_bits(x: Array, dtype: Any) -> Array:
    return x if x.dtype == dtype else lax.bitcast_convert_type(x, dtype)


def group_size(vocabulary: int, tokens: int = GROUP) -> int:
    """How many rows of a vocabulary make a group of so many tokens, or one that suits a CPU."""
    return max(1, tokens // vocabulary)


def where_wanted(
    function: Callable[[Rows, Array], Rows],
    wanted: Array,
    state: Rows,
    x: Array,
    size: int | None = None,
) -> Rows:
    """`function(state, x)` of arrays [N, ...] in the rows bool [N] wanted, else `state`.

    A few of the wanted rows after another, so that others cost nothing, but for those that fill up
    the last few: `size` of them or, where that is None, as suits a CPU, and all at once elsewhere;
    one, where N is not known.
    What the function gives for other rows, or twice for one, is dropped.
    """
    n, vocabulary = x.shape
    is_given, is_fixed = size is not None, isinstance(n, int)
    # What is exported for any number of rows must do for one.
    size = (size or group_size(vocabulary)) if is_fixed else 1

    def choose(wanted: Array, new: Rows, old: Rows) -> Rows:
        result: Rows = jax.tree.map(lambda a, b: where(per_row(wanted, a), a, b), new, old)
        return result

    def whole(wanted: Array, state: Rows, x: Array) -> Rows:
        return choose(wanted, function(state, x), state)

    def by_parts(wanted: Array, state: Rows, x: Array) -> Rows:
        order = jnp.argsort(~wanted)  # those wanted first

        def part(i: Array, result: Rows) -> Rows:
            start = jnp.minimum(i * size, n - size)  # the last part may overlap the one before it
            rows = lax.dynamic_slice_in_dim(order, start, size)
            # With a barrier, or a compiler copies all of narrow logits before the loop.
            rows, every = lax.optimization_barrier((rows, x))
            new = function(*rows_at(rows, (state, every)))
            place = rows[0] if size == 1 else start
            put: Rows = jax.tree.map(
                lambda old, new: lax.dynamic_update_slice_in_dim(old, new, place, 0), result, new
            )
            return put

        parts = lax.div(jnp.sum(wanted, dtype=jnp.int32) + size - 1, jnp.int32(size))
        in_order: Rows = lax.fori_loop(0, parts, part, state)
        if size == 1:  # each is where it was
            return in_order
        return choose(wanted, rows_at(jnp.argsort(order), in_order), state)

    def of_all(*rows: Any) -> Rows:
        if is_fixed and n <= size:
            return whole(*rows)
        if is_given:
            return by_parts(*rows)
        result: Rows = by_device(*rows, cpu=by_parts, default=whole)
        return result

    result: Rows = lax.cond(jnp.any(wanted), of_all, lambda _, state, x: state, wanted, state, x)
    return result
