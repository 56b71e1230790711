"""A vocabulary in chunks of 32 x 128 tokens: sums, and the token where a running sum ends."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._checks import places
from sampling_jax._wide import Wide

ROWS, LANES = 32, 128
STEP = 8  # rows reduced at once: a compiler unrolls that few, and works on whole lanes

Weigh = Callable[[Array], Array]  # uint32 weights below 2**31 of clean logits [N, ...]


class End(NamedTuple):
    """Where a prefix ends: in are the logits above `value`, and the first `ties` equal to it."""

    value: Array  # float32 [N]
    ties: Array  # uint32 [N]


class Prefix(NamedTuple):
    """What is kept of chunks of logits."""

    end: End
    above: Wide  # wide [N, chunks], the weights of the logits above the end
    tied: Array  # uint32 [N, chunks], how many logits are equal to the end


def per_row(value: Array, like: Array) -> Array:
    """[N] reshaped to broadcast against [N, ...]."""
    return value.reshape(value.shape + (1,) * (like.ndim - 1))


def to_chunks(x: Array) -> Array:
    """[N, V] as [N, chunks, rows, lanes] in id order, padded with -inf."""
    n, v = x.shape
    lanes = min(v, LANES)
    rows = min(-(-v // lanes), ROWS)
    rows = rows if rows <= STEP // 2 else -(-rows // STEP) * STEP
    chunks = -(-v // (rows * lanes))
    x = jnp.pad(x, ((0, 0), (0, chunks * rows * lanes - v)), constant_values=-jnp.inf)
    return x.reshape(n, chunks, rows, lanes)


def first_light(x: Array, weights: Array, threshold: Array) -> Array:
    """float32 [N]: the largest of x that weighs less than uint32 [N]; -inf if none does.

    Equal logits weigh the same, so what is too light begins with all the ties of a logit.
    """
    is_light = weights < per_row(threshold, x)
    return jnp.max(jnp.where(is_light, x, -jnp.inf), axis=tuple(range(1, x.ndim)))


def ids_of(x: Array) -> Array:
    """int32 [1, chunks, rows, lanes], the ids of the tokens of all chunks."""
    return lax.iota(jnp.int32, x[0].size).reshape(1, *x.shape[1:])


def sum_tokens(number: Wide) -> Wide:
    """Wide [...] from [..., chunks, rows, lanes], in one pass."""
    *shape, chunks, rows, lanes = number[0].shape
    high, low = (part.reshape(*shape, chunks * rows, lanes) for part in number)
    while (size := high.shape[-2]) > 2 * STEP:
        if size % STEP:
            padding = [(0, 0, 0)] * len(shape) + [(0, -size % STEP, 0), (0, 0, 0)]
            high, low = (lax.pad(part, jnp.uint32(0), padding) for part in (high, low))
        groups = (*shape, -(-size // STEP), STEP, lanes)
        high, low = _wide.sums(high.reshape(groups), low.reshape(groups), axes=(-2,))
    return _wide.add_up(_wide.add_up((high, low), axes=(-2,)), axes=(-1,))


def chunk_sums(weights: Array) -> Wide:
    """Wide [N, chunks] from uint32 weights below 2**31, [N, chunks, rows, lanes]."""
    return _sum_chunks(weights)[0]


def sums_and_counts(weights: Array, condition: Array) -> tuple[Wide, Array]:
    """`chunk_sums` and `chunk_counts`, in one pass."""
    sums, (counts,) = _sum_chunks(weights, condition.astype(jnp.uint32))
    return sums, counts


def _sum_chunks(weights: Array, *others: Array) -> tuple[Wide, list[Array]]:
    n, chunks, rows, lanes = weights.shape
    parts = [weights, *others]
    axes: tuple[int, ...] = (2, 2)
    if rows % STEP == 0:  # two weights add up in 32 bits, which halves the work on wide numbers
        pairs = (p.reshape(n, chunks, rows // STEP, 2, STEP // 2, lanes) for p in parts)
        parts, axes = [p[:, :, :, 0] + p[:, :, :, 1] for p in pairs], (3, 2, 2)
    (high, low), counts = _wide.widen(parts[0]), parts[1:]
    for axis in axes:  # one at a time, or a compiler walks along the lanes one by one
        high, low, *counts = _wide.sums(high, low, *counts, axes=(axis,))
        high, low = _wide.carry(high, low)
    return (high, low), counts


def chunk_counts(condition: Array) -> Array:
    """uint32 [N, chunks] of bool [N, chunks, rows, lanes]."""
    # A barrier, or XLA makes one slow reduce of the two.
    columns = lax.optimization_barrier(jnp.sum(condition, axis=2, dtype=jnp.uint32))
    return jnp.sum(columns, axis=2, dtype=jnp.uint32)


def no_sums(like: Array, x: Array) -> Wide:
    """Zeros for each chunk of x, varying over devices as [N] does."""
    zeros = jnp.broadcast_to(jnp.zeros_like(like, jnp.uint32)[:, None], x.shape[:2])
    return zeros, zeros


def all_above(value: Array, sums: Wide) -> Prefix:
    """What is above a value [N], given what it weighs in each chunk."""
    nothing = jnp.zeros_like(sums[0])
    return Prefix(End(value, nothing[:, 0]), sums, nothing)


def locate(
    weigh: Weigh, x: Array, prefix: Prefix, rest: Wide, without: Array | None = None
) -> Array:
    """int32 [N]: the first id of a prefix whose running sum of weights exceeds `rest`.

    Args:
      weigh: as the prefix was weighed.
      x: [N, chunks, rows, lanes], what it is a prefix of.
      rest: wide [N], less than the weight of the prefix.
      without: int32 [N, n], ids above the end that weigh nothing, and that the prefix leaves out;
        -1 is none.
    """
    _, _, rows, lanes = x.shape
    end, above, tied = prefix
    each = _wide.widen(weigh(end.value))
    chunk, rest, ties = _descend(above, tied, each, end.ties, rest)
    x = jax.vmap(lambda row, i: lax.dynamic_index_in_dim(row, i, keepdims=False))(x, chunk)
    bound = per_row(end.value, x)
    weights, is_tie = jnp.where(x > bound, weigh(x), 0), (x == bound).astype(jnp.uint32)
    if without is not None:
        gone = places(without - chunk[:, None] * (rows * lanes), rows * lanes)
        weights = weights.reshape(-1, rows * lanes).at[gone].set(0).reshape(weights.shape)
    high, low, tied = _wide.sums(*_wide.widen(weights), is_tie, axes=(2,))
    row, rest, ties = _descend(_wide.carry(high, low), tied, each, ties, rest)
    weights, is_tie = (
        jnp.take_along_axis(v, row[:, None, None], axis=1)[:, 0] for v in (weights, is_tie)
    )
    lane, _, _ = _descend(_wide.widen(weights), is_tie, each, ties, rest)
    return (chunk * rows + row) * lanes + lane


def draw_by(bits: Array, weights: Array, sums: Wide, without: Array | None = None) -> Array:
    """int32 [N], one of the tokens by their weights [N, chunks, rows, lanes]; -1 if all are 0.

    Args:
      bits: uint32 [N, 2].
      sums: wide [N, chunks], of the weights, less those of the ids in `without`.
      without: as in `locate`.
    """
    total = _wide.add_up(sums, axes=(1,))
    prefix = all_above(jnp.zeros_like(total[0]), sums)
    rest = _wide.fraction(bits, total)
    token = locate(lambda weights: weights, weights, prefix, rest, without)
    return jnp.where(_wide.is_positive(total), token, -1)


def _descend(
    above: Wide, tied: Array, each: Wide, ties: Array, rest: Wide
) -> tuple[Array, Wide, Array]:
    """Index [N] of the first part whose running sum exceeds `rest`; `rest` and `ties` inside it."""
    earlier = _wide.narrow(_wide.running_sum(_wide.widen(tied))) - tied
    kept = jnp.minimum(ties[:, None] - jnp.minimum(ties[:, None], earlier), tied)
    sums = _wide.carry(above[0] + each[0][:, None] * kept, above[1] + each[1][:, None] * kept)
    # Running sums never fall, so those not over `rest` come first, and add up to the last of them.
    passed = ~_wide.greater(_wide.running_sum(sums), _wide.column(rest))
    parts = (passed.astype(jnp.uint32), kept, *sums)
    index, used, *done = _wide.sums(*(jnp.where(passed, p, 0) for p in parts), axes=(1,))
    return index.astype(jnp.int32), _wide.subtract(rest, _wide.carry(*done)), ties - used
