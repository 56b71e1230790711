"""What the filters keep: a prefix of the ranking, found without sorting the vocabulary."""

import math

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._blocks import End, Prefix, chunk_sums, ids_of, locate, no_sums, per_row
from sampling_jax._filters import filters_on
from sampling_jax._head import SIZE, end_in_head, head_of
from sampling_jax._rows import where_wanted
from sampling_jax._tops import column_tops
from sampling_jax._weights import Row, row_weights
from sampling_jax._whole import prefix_in_whole, weigh_above


def find_prefix(x: Array, row: Row, settings: RowSettings) -> Prefix:
    """What is kept of x [N, chunks, rows, lanes].

    First in the head of the ranking, where most prefixes end; then, if any does not, among all
    tokens. Both give the same end: which of them runs costs time and nothing else.
    """
    k_on, p_on, m_on = filters_on(settings, row.top)
    # Nothing to search where nothing is filtered, or there is nothing at all.
    is_open = ~(k_on | p_on | m_on) | (row.top == -jnp.inf)
    everything = lax.cond(
        jnp.any(is_open | (p_on & ~k_on)),
        lambda: chunk_sums(row_weights(row, x)),
        lambda: no_sums(row.top, x),
    )
    total = _wide.add_up(everything, axes=(1,))

    tops = column_tops(x)
    end, is_known = end_in_head(head_of(tops, lambda x: row_weights(row, x)), row, settings, total)
    unknown = ~(is_known | is_open)
    end = End(jnp.where(is_open, -jnp.inf, end.value), jnp.where(is_open, 0, end.ties))

    above, tied = weigh_above(tops.logits, row, end.value)
    prefix = Prefix(end, _wide.select(is_open[:, None], everything, above), tied)
    if math.prod(x.shape[1:]) > SIZE:  # or a head holds every token
        prefix = where_wanted(prefix_in_whole, unknown, prefix, x, tops, row, settings, total)
    return prefix


def kept(x: Array, prefix: Prefix) -> Array:
    """Bool [N, chunks, rows, lanes]: which of the logits x are in the prefix."""
    value = per_row(prefix.end.value, x)

    def is_tie(x: Array) -> Array:
        return (x == per_row(prefix.end.value, x)).astype(jnp.uint32)

    nothing = _wide.keep(jnp.zeros_like(prefix.tied, bool), prefix.above)
    rest = _wide.widen(jnp.maximum(prefix.end.ties, 1) - 1)
    last = locate(is_tie, x, prefix._replace(above=nothing), rest)
    is_in = (ids_of(x) <= per_row(last, x)) & (per_row(prefix.end.ties, x) > 0)
    return (x > value) | ((x == value) & is_in)
