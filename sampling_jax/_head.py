"""The first few of a ranking, sorted: nearly every prefix that is kept ends among them."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._chunks import count, in_halves
from sampling_jax._filters import filters_on, min_p_threshold, top_p_target
from sampling_jax._locate import End, Weigh
from sampling_jax._tops import Tops, lane_tops
from sampling_jax._weights import Row, row_weights
from sampling_jax._wide import Wide

SIZE = 128  # the length of a head


class Head(NamedTuple):
    """Sorted logits: the first `length` of the ranking are known, and lie above `floor`."""

    logits: Array  # float32 [N, K], descending
    weights: Array  # uint32 [N, K], 0 beyond `length`
    length: Array  # int32 [N]
    floor: Array  # float32 [N]; -inf where there is nothing beyond


def head_of(tops: Tops, weigh: Weigh) -> Head:
    """The head of a ranking."""
    tops = lane_tops(tops)
    # Largest first, which spares the partial sort of lax.top_k most of its work.
    n, *shape = tops.logits.shape
    candidates = jnp.moveaxis(tops.logits, 2, 1).reshape(n, math.prod(shape))
    size = min(SIZE, candidates.shape[1])
    # A slice of its result would make XLA sort instead; behind a barrier it cannot.
    logits = lax.optimization_barrier(lax.top_k(candidates, size)[0])
    known = logits > tops.floor[:, None]
    weights = jnp.where(known, weigh(logits), 0)
    # Beyond the last of a full head there may be more, down to its own value.
    floor = tops.floor
    if size < candidates.shape[1]:
        floor = jnp.maximum(floor, logits[:, -1])
    return Head(logits, weights, count(known).astype(jnp.int32), floor)


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
        survivors = _wide.add_up(_wide.keep(is_last, running), axes=(1,))
        target = top_p_target(settings.top_p, _wide.select(length <= size, survivors, total))
        short = _wide.greater(_wide.column(target), running)
        reached = count(short).astype(jnp.int32) + 1
        length = jnp.where(p_on, jnp.minimum(reached, length), length)
    if settings.min_p is not None:
        light = row_weights(row, head.logits) < min_p_threshold(settings.min_p)[:, None]
        first = in_halves(jnp.minimum, jnp.where(light, position, size + 1), size + 1, 1)
        length = jnp.where(m_on, jnp.minimum(first, length), length)

    ahead = jnp.where(position < length[:, None], head.logits, jnp.inf)
    value = in_halves(jnp.minimum, ahead, jnp.inf, 1)
    is_tie = (head.logits == value[:, None]) & (position < length[:, None])
    ties = count(is_tie)
    return End(value, ties), (length <= head.length) & (total_known | ~p_on)
