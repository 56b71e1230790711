"""The end of what the filters keep, searched for among all tokens: right for every row."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._checks import LARGEST
from sampling_jax._chunks import (
    STEP,
    chunk_counts,
    chunk_sums,
    first_light,
    sums_and_counts,
    to_chunks,
)
from sampling_jax._filters import filters_on, min_p_threshold, top_p_target
from sampling_jax._locate import End, Prefix, all_above, no_sums
from sampling_jax._rows import per_row
from sampling_jax._search import shortest_prefix
from sampling_jax._tops import Tops
from sampling_jax._weights import Row, clean, row_weights
from sampling_jax._wide import Wide


def weigh_above(x: Array, row: Row, value: Array) -> tuple[Wide, Array]:
    """Of each chunk of x, the weights of all logits above a value and how many are equal to it.

    Args:
      value: float32 [N].

    Returns:
      wide [N, chunks] and uint32 [N, chunks].
    """
    bound = per_row(value, x)
    weights = jnp.where(x > bound, row_weights(row, x), 0)
    if x.shape[2] % STEP == 0:  # three sums of long columns in one pass spill registers
        return chunk_sums(weights), chunk_counts(x == bound)
    return sums_and_counts(weights, x == bound)


def kept_sums(prefix: Prefix) -> tuple[Wide, Array]:
    """Wide [N], the weights above the end, and uint32 [N], how many equal to it are kept: top_k may
    ask for more than there are.
    """
    high, low, tied = _wide.sums(*prefix.above, prefix.tied, axes=(1,))
    return _wide.carry(high, low), jnp.minimum(prefix.end.ties, tied)


def mass(prefix: Prefix, row: Row) -> Wide:
    """Wide [N], the weights of all that is kept."""
    above, ties = kept_sums(prefix)
    return _wide.add(above, _wide.times(ties, row_weights(row, prefix.end.value)))


def prefix_in_whole(
    logits: Array, tops: Tops, row: Row, settings: RowSettings, total: Wide, wanted: Array
) -> Prefix:
    """The prefix of logits [N, V], clean or not, in the rows bool [N] that want it.

    `total` is the weight of the whole row, read where top_p is on and top_k is off.
    """
    x = to_chunks(clean(logits))
    # A minimum that changes nothing: the tops vary over devices as the settings do, if they do.
    tops = jax.tree.map(lambda t: jnp.minimum(t, per_row(row.top, t)), tops)
    k_on, p_on, m_on = filters_on(settings, row.top)
    # Weights are 0 from 31 octaves down.
    weightless = jnp.maximum(row.top - 32 / row.scale, -LARGEST)
    if settings.min_p is not None:
        light = first_light(x, row_weights(row, x), min_p_threshold(settings.min_p))

    def prefix_to(end: End, is_last: Array | bool, wanted: Array) -> Prefix:
        """The prefix to an end, or to that of min_p if it is the last filter but this."""
        if settings.min_p is not None:
            is_shorter = m_on & (light >= end.value) & is_last
            end = End(jnp.where(is_shorter, light, end.value), jnp.where(is_shorter, 0, end.ties))
        # The tops hold all that is above their floor.
        is_deep = jnp.any(wanted & ~(end.value > tops.floor))
        sources = (lambda: x, lambda: tops.logits)
        above, tied = lax.cond(
            is_deep, *(lambda s=s: weigh_above(s(), row, end.value) for s in sources)
        )
        return Prefix(end, above, tied)

    def shorten(
        state: tuple[Prefix, Wide], step: tuple[Array, Array]
    ) -> tuple[tuple[Prefix, Wide], None]:
        """Apply top_k if it `counts`, else top_p."""
        (end, *_), total = state
        counts, is_last = step

        def weigh(x: Array) -> Array:
            one = jnp.uint32(1)
            return one if settings.top_p is None else jnp.where(counts, one, row_weights(row, x))

        target, all_weigh, is_on = total, total, wanted & jnp.where(counts, k_on, p_on)
        if settings.top_p is not None:
            # Not the same in both steps, or a compiler takes it apart to do some of it before them.
            target = top_p_target(jnp.where(counts, 0, settings.top_p), total)
        if settings.top_k is not None:
            top_k = jnp.maximum(settings.top_k, 1).astype(jnp.uint32)
            target = _wide.select(counts, _wide.widen(top_k), target)
            size = _wide.widen(jnp.full_like(top_k, logits.shape[1]))
            all_weigh = _wide.select(counts, size, total)
        least = jnp.where(counts, -jnp.inf, weightless)
        value, before = shortest_prefix(x, tops, weigh, target, all_weigh, least, is_on)
        ties = _wide.quotient(_wide.subtract(target, before), jnp.maximum(weigh(value), 1))
        ties = jnp.where(value > -jnp.inf, ties, 0)  # else all are kept
        end = End(jnp.where(is_on, value, end.value), jnp.where(is_on, ties, end.ties))
        prefix = prefix_to(end, is_last, wanted & (is_last | (k_on & p_on)))
        return (prefix, _wide.select(is_on & counts, mass(prefix, row), total)), None

    everything = all_above(jnp.full_like(row.top, -jnp.inf), no_sums(row.top, x))
    counts = [True] * (settings.top_k is not None) + [False] * (settings.top_p is not None)
    if not counts:
        return prefix_to(everything.end, True, wanted)
    is_last = [False] * (len(counts) - 1) + [True]
    steps = jnp.array(counts, bool), jnp.array(is_last, bool)
    (prefix, _), _ = lax.scan(shorten, (everything, total), steps)
    _, ties = kept_sums(prefix)
    return prefix._replace(end=prefix.end._replace(ties=ties))
