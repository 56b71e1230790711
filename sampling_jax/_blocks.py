"""A vocabulary in chunks of 32 x 128 tokens: sums, and the token where a running sum ends."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._wide import Wide

ROWS, LANES = 32, 128

# uint32 weights of tokens, given their logits [N, ...] and their ids of a shape that broadcasts.
Weigh = Callable[[Array, Array], Array]


def per_row(value: Array, like: Array) -> Array:
    """[N] reshaped to broadcast against [N, ...]."""
    return value.reshape(value.shape + (1,) * (like.ndim - 1))


def to_chunks(x: Array) -> Array:
    """[N, V] as [N, chunks, rows, lanes] in id order, padded with -inf."""
    n, v = x.shape
    lanes = min(v, LANES)
    rows = min(-(-v // lanes), ROWS)
    chunks = -(-v // (rows * lanes))
    x = jnp.pad(x, ((0, 0), (0, chunks * rows * lanes - v)), constant_values=-jnp.inf)
    return x.reshape(n, chunks, rows, lanes)


def ids_of(x: Array) -> Array:
    """int32 [1, chunks, rows, lanes], the ids of the tokens of all chunks."""
    return lax.iota(jnp.int32, x[0].size).reshape(1, *x.shape[1:])


def chunk_sums(weights: Array) -> Wide:
    """Wide [N, chunks] from uint32 weights below 2**31, [N, chunks, rows, lanes]."""
    rows = weights.shape[2]
    if rows % 2 == 0:  # two weights add up in 32 bits, which halves the work on wide numbers
        weights = weights[:, :, : rows // 2] + weights[:, :, rows // 2 :]
    (lanes,) = _wide.add_up(_wide.widen(weights), axes=(2,))
    (sums,) = _wide.add_up(lanes, axes=(2,))
    return sums


def chunk_counts(condition: Array) -> Array:
    """uint32 [N, chunks] of bool [N, chunks, rows, lanes]."""
    # One axis at a time: a sum over the last axis of many numbers is slow on a CPU.
    columns = jnp.sum(condition, axis=2, dtype=jnp.uint32)
    return jnp.sum(columns, axis=2, dtype=jnp.uint32)


def locate(weigh: Weigh, x: Array, sums: Wide, rest: Wide) -> Array:
    """int32 [N]: the first id whose running sum of weights exceeds `rest`, given `chunk_sums`."""
    _, _, rows, lanes = x.shape
    chunk, rest = _pick(sums, rest)
    inside = jax.vmap(lambda row, i: lax.dynamic_index_in_dim(row, i, keepdims=False))(x, chunk)
    first = chunk * (rows * lanes)
    ids = per_row(first, inside) + lax.iota(jnp.int32, rows * lanes).reshape(1, rows, lanes)
    weights = _wide.widen(weigh(inside, ids))
    row, rest = _pick(_wide.add_up(weights, axes=(2,))[0], rest)
    high, low = (jnp.take_along_axis(w, row[:, None, None], axis=1)[:, 0, :] for w in weights)
    lane, _ = _pick((high, low), rest)
    return first + row * lanes + lane


def _pick(sums: Wide, rest: Wide) -> tuple[Array, Wide]:
    """Index [N] of the first running sum over `rest`, and what remains of `rest` before it."""
    n = sums[0].shape[1]
    before = ~_wide.greater(_wide.running_sum(sums), (rest[0][:, None], rest[1][:, None]))
    # Running sums never fall: the last one not over `rest` is the sum of all `before` it.
    index = jnp.minimum(jnp.sum(before, axis=1, dtype=jnp.int32), n - 1)
    skipped = lax.iota(jnp.int32, n)[None, :] < index[:, None]
    (done,) = _wide.add_up(_wide.keep(skipped, sums), axes=(1,))
    return index, _wide.subtract(rest, done)
