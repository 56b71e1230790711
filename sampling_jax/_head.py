"""The first few of a ranking, sorted: nearly every prefix that is kept ends among them."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._filters import filters_on, min_p_threshold, top_p_target
from sampling_jax._weights import Row, row_weights
from sampling_jax._wide import Wide

DEPTH = 4  # the tops kept of each column of 32 logits
SHORT, LONG = 128, 256  # the length of a head, with top_k and without


class Head(NamedTuple):
    """Sorted logits: the first `length` of the ranking are known, and lie above `floor`."""

    logits: Array  # float32 [N, K], descending
    weights: Array  # uint32 [N, K], 0 beyond `length`
    length: Array  # int32 [N]
    floor: Array  # float32 [N]; -inf where there is nothing beyond


class End(NamedTuple):
    """Where a prefix ends, before ids are known: in are the logits above `value`, and `ties`."""

    value: Array  # float32 [N]
    ties: Array  # uint32 [N], how many logits equal to `value` are in


def column_tops(x: Array) -> tuple[Array, Array]:
    """The largest few of each column of x [N, chunks, rows, lanes], and what they may miss.

    Returns:
      float32 [N, chunks, <= DEPTH, lanes], and float32 [N]: every logit above it is in the former.
    """
    if x.shape[2] <= DEPTH:
        return x, jnp.full(x.shape[:1], -jnp.inf, x.dtype)
    tops = [jnp.full_like(x[:, :, 0], -jnp.inf)] * DEPTH
    for row in range(x.shape[2]):
        logit = x[:, :, row]
        for i, top in enumerate(tops):
            tops[i] = jnp.where(logit > top, logit, top)
            logit = jnp.where(logit > top, top, logit)
    # Without the barrier a compiler finds the tops again for each use of them.
    result = lax.optimization_barrier(jnp.stack(tops, axis=2))
    return result, jnp.max(result[:, :, -1], axis=(1, 2))


def head_of(tops: Array, floor: Array, row: Row, size: int) -> Head:
    """The head of a ranking, from `column_tops`."""
    # Largest first, which spares the partial sort of lax.top_k most of its work.
    candidates = jnp.moveaxis(tops, 2, 1).reshape(tops.shape[0], math.prod(tops.shape[1:]))
    size = min(size, candidates.shape[1])
    # A slice of its result would make XLA sort instead; behind a barrier it cannot.
    logits = lax.optimization_barrier(lax.top_k(candidates, size)[0])
    known = logits > floor[:, None]
    weights = jnp.where(known, row_weights(row, logits), 0)
    # Beyond the last of a full head there may be more, down to its own value.
    floor = jnp.maximum(floor, logits[:, -1]) if size < candidates.shape[1] else floor
    return Head(logits, weights, jnp.sum(known, axis=1, dtype=jnp.int32), floor)


def end_in_head(head: Head, row: Row, settings: RowSettings, total: Wide) -> tuple[End, Array]:
    """The end of what the filters keep, and bool [N]: whether the head is enough to tell.

    `total` is the weight of the whole row, read where top_p is on and top_k is off.
    """
    size = head.logits.shape[1]
    k_on, p_on, m_on = filters_on(settings, head.length)
    complete = head.floor == -jnp.inf
    beyond = jnp.full_like(head.length, size + 1)
    running = _wide.running_sum(_wide.widen(head.weights))
    position = lax.iota(jnp.int32, size)[None, :]

    length = jnp.where(complete, head.length, beyond)
    total_known = complete | ~k_on
    if settings.top_k is not None:
        total_known = total_known | (settings.top_k <= head.length)
        length = jnp.where(k_on, jnp.minimum(settings.top_k, length), length)
    if settings.top_p is not None:
        is_last = position == length[:, None] - 1
        (survivors,) = _wide.add_up(_wide.keep(is_last, running), axes=(1,))
        target = top_p_target(settings.top_p, _wide.select(length <= size, survivors, total))
        short = _wide.greater((target[0][:, None], target[1][:, None]), running)
        reached = jnp.sum(short, axis=1, dtype=jnp.int32) + 1
        length = jnp.where(p_on, jnp.minimum(reached, length), length)
    if settings.min_p is not None:
        light = row_weights(row, head.logits) < min_p_threshold(settings.min_p)[:, None]
        first = jnp.min(jnp.where(light, position, size + 1), axis=1)
        length = jnp.where(m_on, jnp.minimum(first, length), length)

    value = jnp.min(jnp.where(position < length[:, None], head.logits, jnp.inf), axis=1)
    is_tie = (head.logits == value[:, None]) & (position < length[:, None])
    ties = jnp.sum(is_tie, axis=1, dtype=jnp.uint32)
    return End(value, ties), (length <= head.length) & (total_known | ~p_on)
