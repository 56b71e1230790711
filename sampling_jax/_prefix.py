"""What the filters keep: a prefix of the ranking, found without sorting the vocabulary."""

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax._arguments import RowSettings
from sampling_jax._chunks import FEW, STEP, chunk_maxima, chunk_sums, in_chunks
from sampling_jax._device import by_device
from sampling_jax._filters import filters_on, is_filtered
from sampling_jax._locate import Prefix, all_above
from sampling_jax._mass import stacked
from sampling_jax._rows import alike, group_size
from sampling_jax._steps import shorten
from sampling_jax._tops import column_tops
from sampling_jax._weights import Row, row_weights, scale
from sampling_jax._wide import Wide


def find_prefix(logits: Array, settings: RowSettings) -> tuple[Row, Prefix]:
    """What settings [N] keep of logits [N, V], clean or not."""

    def sums() -> Wide:
        step = STEP if logits.dtype.itemsize == 4 else FEW
        return in_chunks(logits, lambda x: chunk_sums(row_weights(row, x), step))

    if not is_filtered(settings):
        settings, top = alike((settings, jnp.max(chunk_maxima(logits), axis=1)))
        row = Row(top, scale(settings.temperature))
        return row, all_above(jnp.full_like(top, -jnp.inf), sums())

    tops = column_tops(logits)
    settings, top = alike((settings, jnp.max(tops.logits, axis=(1, 2, 3))))
    row = Row(top, scale(settings.temperature))
    k_on, p_on, m_on = filters_on(settings, top)
    # By the settings alone: where they are constants, a compiler leaves out a branch.
    needed = ~(k_on | p_on | m_on) | (p_on & ~k_on)
    zero = jnp.zeros_like(top, jnp.uint32)
    nothing = jnp.broadcast_to(zero[:, None], tops.logits.shape[:2])
    is_known = jnp.sum(needed, dtype=jnp.int32) > _few(settings, *logits.shape)
    everything = lax.cond(
        is_known,
        lambda: stacked((sums(), nothing)),
        lambda: stacked(((nothing, nothing), nothing)),
    )
    return row, shorten(logits, tops, row, settings, everything, is_known)


def _few(settings: RowSettings, n: int, vocabulary: int) -> Array:
    """How many of n rows a search may weigh in groups, which costs three times as much a row."""
    size = group_size(vocabulary)
    # The step before top_p can, if there is one; elsewhere than on CPU it would weigh all rows.
    most = 0 if settings.top_k is None else n // (3 * size) * size
    few: Array = by_device(cpu=lambda: jnp.int32(most), default=lambda: jnp.int32(0))
    return few
