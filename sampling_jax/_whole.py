"""The end of what the filters keep, searched for among all tokens: right for every row."""

import jax.numpy as jnp
from jax import Array

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._filters import filters_on, min_p_threshold, top_p_target
from sampling_jax._head import End, Head
from sampling_jax._search import Bracket, rank, shortest_prefix
from sampling_jax._weights import Row, row_weights
from sampling_jax._wide import Wide


def end_in_whole(
    x: Array, row: Row, settings: RowSettings, total: Wide, head: Head, wanted: Array
) -> End:
    """The end of the prefix of x [N, chunks, rows, lanes], in the rows bool [N] that want it.

    `total` is the weight of the whole row, read where top_p is on and top_k is off.
    """
    n, chunks, rows, lanes = x.shape
    x = x.reshape(n, chunks * rows, lanes)
    w = jnp.where(x > -jnp.inf, row_weights(row, x), 0)
    k_on, p_on, m_on = filters_on(settings, row.top)
    least = jnp.min(jnp.where(x > -jnp.inf, x, jnp.inf), axis=(1, 2))
    above_floor = head.logits > head.floor[:, None]

    def search(weights: Array, in_head: Array, target: Wide, on: Array) -> tuple[Array, Wide]:
        (above,) = _wide.add_up(_wide.widen(jnp.where(above_floor, in_head, 0)), axes=(1,))
        is_below = _wide.greater(target, above)
        nothing = jnp.zeros_like(above[0])
        bracket = Bracket(
            low=rank(least),
            high=rank(jnp.where(is_below, head.floor, row.top)) + 1,
            above=_wide.select(is_below, above, (nothing, nothing)),
        )
        return shortest_prefix(x, weights, target, bracket, on)

    value = jnp.full_like(row.top, -jnp.inf)
    ties = jnp.zeros(row.top.shape, jnp.uint32)
    if settings.top_k is not None:
        one = (x > -jnp.inf).astype(jnp.uint32)
        target = _wide.widen(settings.top_k.astype(jnp.uint32))
        on = wanted & k_on & ~_wide.greater(target, _total(one))
        end, above = search(one, jnp.ones_like(head.weights), target, on)
        value = jnp.where(on, end, value)
        ties = jnp.where(on, _wide.narrow(_wide.subtract(target, above)), 0)
        survivors = _wide.add(
            _total(jnp.where(x > value[:, None, None], w, 0)),
            _wide.times(ties, _wide.widen(row_weights(row, value))),
        )
        total = _wide.select(k_on, survivors, total)
    if settings.top_p is not None:
        on = wanted & p_on
        target = top_p_target(settings.top_p, total)
        end, above = search(w, head.weights, target, on)
        value = jnp.where(on, end, value)
        missing = _wide.subtract(target, above)
        each = jnp.maximum(row_weights(row, end), 1)
        ties = jnp.where(on, _wide.quotient(missing, each), ties)
    if settings.min_p is not None:
        is_light = w < min_p_threshold(settings.min_p)[:, None, None]
        # Equal logits weigh the same, so what is too light begins with all the ties of a logit.
        light = jnp.max(jnp.where(is_light, x, -jnp.inf), axis=(1, 2))
        is_shorter = m_on & (light >= value)
        value = jnp.where(is_shorter, light, value)
        ties = jnp.where(is_shorter, 0, ties)
    return End(value, ties)


def _total(weights: Array) -> Wide:
    (sums,) = _wide.add_up(_wide.widen(weights), axes=(1,))
    return _wide.add_up(sums, axes=(1,))[0]
