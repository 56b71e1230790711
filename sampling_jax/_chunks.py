"""A vocabulary in chunks of 32 x 128 tokens, read where it is: their maxima, sums and counts."""

import functools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._rows import Rows, per_row, taken
from sampling_jax._weights import clean, numbers
from sampling_jax._where import where
from sampling_jax._wide import Wide

ROWS, LANES = 32, 128
STEP = 8  # rows reduced at once: a compiler unrolls that few, and works on whole lanes
FEW = 4  # the same where more registers are taken: by weights of narrow logits, or by counts too


def to_chunks(x: Array) -> Array:
    """[N, V] as [N, chunks, rows, lanes] in id order, padded with -inf, or integers with 0."""
    n, v = x.shape
    lanes = min(v, LANES)
    rows = min(-(-v // lanes), ROWS)
    rows = rows if rows <= STEP // 2 else -(-rows // STEP) * STEP
    chunks = -(-v // (rows * lanes))
    least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else 0
    x = jnp.pad(x, ((0, 0), (0, chunks * rows * lanes - v)), constant_values=least)
    return x.reshape(n, chunks, rows, lanes)


def in_chunks(logits: Array, function: Callable[[Array], Rows]) -> Rows:
    """A function of [N, chunks, rows, lanes] that gives arrays [N, chunks, ...], of logits [N, V].

    The logits are not moved: the last chunk is padded on its own, and the function called twice.
    """
    whole = logits.shape[1] // (ROWS * LANES) * (ROWS * LANES)
    if whole in (0, logits.shape[1]):
        return function(to_chunks(logits))
    missing = ROWS * LANES - (logits.shape[1] - whole)
    last = jnp.pad(logits[:, whole:], ((0, 0), (0, missing)), constant_values=-jnp.inf)
    parts = function(to_chunks(logits[:, :whole])), function(to_chunks(last))
    result: Rows = jax.tree.map(lambda *p: jnp.concatenate(p, axis=1), *parts)
    return result


def chunk_of(x: Array, chunk: Array) -> tuple[Array, Array, Array]:
    """Of x [N, V] and the numbers of chunks [N]: the first id [N] and the values of so many
    tokens [N, rows, lanes], and bool [N, rows, lanes]: which of those are in the chunk.

    The last chunk begins inside the one before it.
    """
    size = ROWS * LANES
    if x.shape[1] <= size:
        x = to_chunks(x)[:, 0]
        start, is_own = jnp.zeros_like(chunk), jnp.ones(x.shape, bool)
    else:
        first, whole = chunk * size, x.shape[1] // size
        start = jnp.minimum(first, x.shape[1] - size)

        def take(x: Array) -> Array:
            # By its number, as devices that share a vocabulary can, and not by where it begins.
            chunks = x[:, : whole * size].reshape(x.shape[0], whole, size)
            place = per_row(jnp.minimum(chunk, whole - 1), chunks)
            one = jnp.take_along_axis(chunks, place, axis=1, mode="promise_in_bounds")[:, 0]
            is_last = per_row(chunk == whole, one)
            return one if x.shape[1] == whole * size else where(is_last, x[:, -size:], one)

        x = taken(take, x).reshape(-1, ROWS, LANES)
        ids = per_row(start, x) + lax.iota(jnp.int32, size).reshape(1, ROWS, LANES)
        is_own = ids >= per_row(first, x)
    return start, clean(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, is_own


def chunk_maxima(logits: Array) -> Array:
    """float32 [N, chunks], clean, of logits [N, V], clean or not."""

    def of_columns(x: Array) -> Array:
        result: Array = lax.optimization_barrier(best_of_columns(numbers(x), lax.gt, -jnp.inf))
        return result

    return clean(jnp.max(in_chunks(logits, of_columns), axis=2))


def best_of_columns(x: Array, is_better: Callable[[Array, Array], Array], start: float) -> Array:
    """float32 [N, chunks, lanes], the best number of each column of x [N, chunks, rows, lanes]."""

    def better(a: Array, b: Array) -> Array:  # faster than `lax.max`, which minds NaN
        return where(is_better(a, b), a, b)

    if (rows := x.shape[2]) < STEP:
        return functools.reduce(better, [x[:, :, row] for row in range(rows)])
    return in_halves(better, x, start, 2)


def in_halves(combine: Callable[[Array, Array], Array], x: Array, start: float, axis: int) -> Array:
    """What x is reduced to along an axis, as two results.

    Compilers combine one over devices only if it is a sum, a maximum, or such, and make three
    kernels of one along many lanes.
    """
    half, is_odd = divmod(x.shape[axis], 2)
    nothing = jnp.asarray(start, x.dtype)
    if is_odd:
        x = lax.pad(x, nothing, [(0, int(i == axis), 0) for i in range(x.ndim)])
        half = half + 1
    halves = [lax.slice_in_dim(x, i, i + half, axis=axis) for i in (0, half)]
    first, second = lax.reduce(
        halves, [nothing] * 2, lambda a, b: list(map(combine, a, b)), (axis,)
    )
    return combine(first, second)


def count(condition: Array) -> Array:
    """uint32 [N], in how many places bool [N, n] holds."""
    return in_halves(operator.add, condition.astype(jnp.uint32), 0, 1)


def first_light(x: Array, weights: Array, threshold: Array) -> Array:
    """float32 [N]: the largest of x that weighs less than uint32 [N]; -inf if none does.

    Equal logits weigh the same, so what is too light begins with all the ties of a logit.
    """
    is_light = weights < per_row(threshold, x)
    return jnp.max(where(is_light, x, -jnp.inf), axis=tuple(range(1, x.ndim)))


def ids_of(x: Array) -> Array:
    """int32 [1, ...], the places of x [N, ...] in each row."""
    return lax.iota(jnp.int32, math.prod(x.shape[1:])).reshape(1, *x.shape[1:])


def in_blocks(x: Array) -> Array:
    """[N, chunks, rows, lanes] as [N, blocks, rows, lanes], of rows to be summed at once."""
    n, chunks, rows, lanes = x.shape
    return x.reshape(n, -1, math.gcd(chunks * rows, STEP), lanes)


def sum_blocks(weights: Array) -> Wide:
    """Wide [N, ...] from uint32 weights below 2**31, [N, blocks, ..., rows, lanes], in one pass."""
    half, is_odd = divmod(weights.shape[1], 2)
    if not is_odd:  # two weights add up in 32 bits, which halves the work on wide numbers
        weights = weights[:, :half] + weights[:, half:]
    high, low = _wide.sums(*_wide.widen(weights), axes=(-2,))
    while (size := high.shape[1]) > 2 * STEP:
        if size % STEP:
            padding = [(0, 0, 0), (0, -size % STEP, 0)] + [(0, 0, 0)] * (high.ndim - 2)
            high, low = (lax.pad(part, jnp.uint32(0), padding) for part in (high, low))
        groups = (high.shape[0], -(-size // STEP), STEP, *high.shape[2:])
        high, low = _wide.sums(high.reshape(groups), low.reshape(groups), axes=(2,))
    return _wide.add_up(_wide.add_up((high, low), axes=(1,)), axes=(-1,))


def chunk_sums(weights: Array, step: int = STEP) -> Wide:
    """Wide [N, chunks] from uint32 weights below 2**31, [N, chunks, rows, lanes].

    So many rows at once as `step` says: of narrow logits FEW.
    """
    return _sum_chunks(step, weights)[0]


def sums_and_counts(weights: Array, condition: Array) -> tuple[Wide, Array]:
    """`chunk_sums` and `chunk_counts`, in one pass."""
    sums, (counts,) = _sum_chunks(FEW, weights, condition.astype(jnp.uint32))
    return sums, counts


def _sum_chunks(step: int, weights: Array, *others: Array) -> tuple[Wide, list[Array]]:
    n, chunks, rows, lanes = weights.shape
    parts = [weights, *others]
    axes = [2, 2]
    if rows % STEP == 0:  # two weights add up in 32 bits, which halves the work on wide numbers
        pairs = (p.reshape(n, chunks, rows // step, 2, step // 2, lanes) for p in parts)
        parts, axes = [p[:, :, :, 0] + p[:, :, :, 1] for p in pairs], [3, 2, 2]
    sums = [*_wide.widen(parts[0]), *parts[1:]]
    # One at a time, or a compiler walks along the lanes one by one. None needs a carry before the
    # end: 2**12 low parts of 19 bits fit in 32.
    for axis in axes:
        sums = _wide.sums(*sums, axes=(axis,))
    high, low, *counts = sums
    return _wide.carry(high, low), counts


def chunk_counts(condition: Array) -> Array:
    """uint32 [N, chunks] of bool [N, chunks, rows, lanes]."""
    # A barrier, or XLA makes one slow reduce of the two.
    columns = lax.optimization_barrier(jnp.sum(condition, axis=2, dtype=jnp.uint32))
    return jnp.sum(columns, axis=2, dtype=jnp.uint32)
