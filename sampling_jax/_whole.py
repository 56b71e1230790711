"""The end of what the filters keep, searched for among all tokens: right for every row."""

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._blocks import End, Prefix, chunk_counts, chunk_sums, first_light, per_row
from sampling_jax._filters import filters_on, min_p_threshold, top_p_target
from sampling_jax._search import shortest_prefix
from sampling_jax._tops import Tops
from sampling_jax._weights import Row, row_weights
from sampling_jax._wide import Wide


def weigh_above(x: Array, tops: Tops, row: Row, value: Array, wanted: Array) -> tuple[Wide, Array]:
    """Of each chunk of x, the weights of all logits above a value and how many are equal to it.

    Args:
      value: float32 [N].
      wanted: bool [N]; other rows cost nothing and give anything.

    Returns:
      wide [N, chunks] and uint32 [N, chunks].
    """

    def within(source: Array) -> tuple[Wide, Array]:
        bound = per_row(value, source)
        weights = jnp.where(source > bound, row_weights(row, source), 0)
        return chunk_sums(weights), chunk_counts(source == bound)

    if tops.logits.shape == x.shape:
        return within(x)
    is_deep = jnp.any(wanted & ~(value > tops.floor))
    result: tuple[Wide, Array]
    result = lax.cond(is_deep, lambda: within(x), lambda: within(tops.logits))
    return result


def mass(prefix: Prefix, row: Row) -> Wide:
    """Wide [N], the weights of all that is kept."""
    above = _wide.add_up(prefix.above, axes=(1,))
    tied = jnp.minimum(prefix.end.ties, jnp.sum(prefix.tied, axis=1, dtype=jnp.uint32))
    each = _wide.widen(row_weights(row, prefix.end.value))
    return _wide.add(above, _wide.times(tied, each))


def end_in_whole(
    x: Array, tops: Tops, row: Row, settings: RowSettings, total: Wide, wanted: Array
) -> End:
    """The end of the prefix of x [N, chunks, rows, lanes], in the rows bool [N] that want it.

    `total` is the weight of the whole row, read where top_p is on and top_k is off.
    """
    k_on, p_on, m_on = filters_on(settings, row.top)
    # Nothing counts below: weights are 0 from 31 octaves down.
    weightless = row.top - 32 / row.scale
    if settings.top_k is not None:
        smallest = jnp.min(jnp.where(x > -jnp.inf, x, jnp.inf), axis=(1, 2, 3))
        tokens = jnp.sum(chunk_counts(x > -jnp.inf), axis=1, dtype=jnp.uint32)
        top_k = jnp.clip(settings.top_k.astype(jnp.uint32), 1, jnp.maximum(tokens, 1))

    def shorten(state: tuple[End, Wide], counts: Array) -> tuple[tuple[End, Wide], None]:
        """Apply top_k if `counts`, else top_p."""
        end, total = state

        def weigh(x: Array) -> Array:
            one = jnp.ones_like(x, jnp.uint32)
            return one if settings.top_p is None else jnp.where(counts, one, row_weights(row, x))

        target, is_on = total, wanted & jnp.where(counts, k_on, p_on)
        if settings.top_p is not None:
            target = top_p_target(settings.top_p, total)
        if settings.top_k is not None:
            target = _wide.select(counts, _wide.widen(top_k), target)
        least = weightless if settings.top_k is None else jnp.where(counts, smallest, weightless)
        value, before = shortest_prefix(x, tops, weigh, target, least, is_on)
        ties = _wide.quotient(_wide.subtract(target, before), jnp.maximum(weigh(value), 1))
        end = End(jnp.where(is_on, value, end.value), jnp.where(is_on, ties, end.ties))
        if not (settings.top_k is None or settings.top_p is None):
            survivors = weigh_above(x, tops, row, end.value, is_on & counts & p_on)
            kept = mass(Prefix(end, *survivors), row)
            total = _wide.select(is_on & counts, kept, total)
        return (end, total), None

    end = End(jnp.full_like(row.top, -jnp.inf), jnp.zeros_like(row.top, jnp.uint32))
    filters = [True] * (settings.top_k is not None) + [False] * (settings.top_p is not None)
    (end, _), _ = lax.scan(shorten, (end, total), jnp.array(filters, bool))
    if settings.min_p is not None:
        light = first_light(x, row_weights(row, x), min_p_threshold(settings.min_p))
        is_shorter = m_on & (light >= end.value)
        end = End(jnp.where(is_shorter, light, end.value), jnp.where(is_shorter, 0, end.ties))
    return end
