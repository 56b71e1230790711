"""What the filters keep: a prefix of the ranking, found without sorting the vocabulary."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._blocks import chunk_counts, chunk_sums, locate, per_row
from sampling_jax._filters import filters_on
from sampling_jax._head import LONG, SHORT, End, column_tops, end_in_head, head_of
from sampling_jax._weights import Row, row_weights
from sampling_jax._whole import end_in_whole
from sampling_jax._wide import Wide


class Cut(NamedTuple):
    """The end of a prefix: logits above `value` are in, and equal ones up to id `last`."""

    value: Array  # float32 [N]
    last: Array  # int32 [N]


def inside(cut: Cut, x: Array, ids: Array) -> Array:
    """Whether tokens are in the prefix."""
    value, last = per_row(cut.value, x), per_row(cut.last, x)
    return (x > value) | ((x == value) & (ids <= last))


def find_cut(x: Array, row: Row, settings: RowSettings) -> tuple[Cut, Wide]:
    """The end of what is kept of x [N, chunks, rows, lanes], and what is kept of each chunk.

    First in the head of the ranking, where most prefixes end; then, if any does not, among all
    tokens. Both give the same end: which of them runs costs time and nothing else.
    """
    k_on, p_on, m_on = filters_on(settings, row.top)
    # Nothing to search where nothing is filtered, or there is nothing at all.
    is_open = ~(k_on | p_on | m_on) | (row.top == -jnp.inf)
    everything = lax.cond(
        jnp.any(is_open | (p_on & ~k_on)),
        lambda: chunk_sums(row_weights(row, x)),
        lambda: (jnp.broadcast_to(jnp.zeros_like(row.top, jnp.uint32)[:, None], x.shape[:2]),) * 2,
    )
    (total,) = _wide.add_up(everything, axes=(1,))

    tops, floor = column_tops(x)
    head = head_of(tops, floor, row, LONG if settings.top_k is None else SHORT)
    end, is_known = end_in_head(head, row, settings, total)
    unknown = ~(is_known | is_open)
    end = End(jnp.where(is_open, -jnp.inf, end.value), jnp.where(is_open, 0, end.ties))

    def kept_of(source: Array, value: Array) -> tuple[Wide, Array]:
        bound = per_row(value, source)
        above = jnp.where(source > bound, row_weights(row, source), 0)
        return chunk_sums(above), chunk_counts(source == bound)

    def from_head() -> tuple[Array, Array, Wide, Array]:
        sums, tied = kept_of(tops, end.value)
        return end.value, end.ties, _wide.select(is_open[:, None], everything, sums), tied

    def from_whole() -> tuple[Array, Array, Wide, Array]:
        other = end_in_whole(x, row, settings, total, head, unknown)
        value = jnp.where(unknown, other.value, end.value)
        return value, jnp.where(unknown, other.ties, end.ties), *kept_of(x, value)

    value, ties, sums, tied = lax.cond(jnp.any(unknown), from_whole, from_head)

    def is_tie(x: Array, ids: Array) -> Array:
        return (x == per_row(value, x)).astype(jnp.uint32)

    rest = _wide.widen(jnp.maximum(ties, 1) - 1)
    last = locate(is_tie, x, _wide.widen(tied), rest)
    earlier = lax.cumsum(tied, axis=1) - tied
    kept = jnp.minimum(jnp.maximum(ties[:, None], earlier) - earlier, tied)
    high, low = (part[:, None] * kept for part in _wide.widen(row_weights(row, value)))
    return Cut(value, jnp.where(ties > 0, last, -1)), _wide.add(sums, (high, low))
