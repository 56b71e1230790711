"""top_k, then top_p: the shortest prefix of a ranking whose weights reach a target, twice."""

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._bracket import opened, rank, value_of
from sampling_jax._checks import LARGEST
from sampling_jax._chunks import first_light
from sampling_jax._filters import filters_on, min_p_threshold, top_p_target
from sampling_jax._locate import End, Prefix
from sampling_jax._mass import mass, stacked, unstacked, weigh_above
from sampling_jax._rows import per_row
from sampling_jax._search import ASKED, TOLD, Cut, Marks, search
from sampling_jax._tops import Tops, lane_tops
from sampling_jax._weights import Row, row_weights
from sampling_jax._wide import Wide


def shorten(
    logits: Array,
    tops: Tops,
    row: Row,
    settings: RowSettings,
    everything: Array,
    unknown: Array,
    wanted: Array,
) -> Prefix:
    """What the filters keep of logits [N, V], clean or not, in the rows bool [N] wanted; all of
    the others.

    Args:
      tops: those of their columns.
      everything: what all of each chunk weigh, wide [N, chunks], and zeros uint32 [N, chunks],
        stacked; read where top_p is on and top_k is off, and in rows that are not wanted.
      unknown: bool [N], rows of those where it is to be found here; none if there is no top_k.
    """
    k_on, p_on, _ = filters_on(settings, row.top)
    few = lane_tops(tops)
    # A minimum that changes nothing: they vary over devices as the settings do, if they do.
    few = few._replace(logits=jnp.minimum(few.logits, per_row(row.top, few.logits)))
    # Weights are 0 from 31 octaves down.
    weightless = jnp.maximum(jnp.minimum(row.top, LARGEST) - 32 / row.scale, -LARGEST)
    last_cut = None
    if settings.min_p is not None:
        threshold = min_p_threshold(settings.min_p)
        light = first_light(tops.logits, row_weights(row, tops.logits), threshold)
        last_cut = Cut(light, threshold)

    def apply(
        before: tuple[Prefix, Wide], step: tuple[Array, Array]
    ) -> tuple[tuple[Prefix, Wide], None]:
        """Apply top_k if it `counts`, else top_p; and then min_p, in the last step."""
        prefix, total = before
        counts, is_last = step

        def weigh(row: Row, x: Array) -> Array:
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
        least = rank(jnp.where(counts, -jnp.inf, weightless))
        least = jnp.maximum(least, rank(prefix.end.value))  # what is below is not kept
        is_asked = is_last | (p_on & (k_on | unknown))
        asked = is_asked.astype(jnp.uint32) * ASKED
        status = jnp.where(wanted | unknown, asked, jnp.uint32(TOLD))
        cut = None
        if last_cut is not None:
            light, threshold = last_cut
            cut = Cut(jnp.where(is_last, light, -jnp.inf), jnp.where(is_last, threshold, 0))
            least = jnp.maximum(least, rank(cut.light))  # what is below is dropped anyhow
        bracket = opened(row.top, least, all_weigh, target, is_on, rank(prefix.end.value))
        marks = Marks(few.floor, bracket.above, tops.floor, status, row, cut)

        bracket, marks, sums = search(bracket, marks, few.logits, everything, logits, weigh)
        value = value_of(bracket.low)
        missing = _wide.subtract(bracket.target, bracket.above)
        ties = _wide.quotient(missing, jnp.maximum(weigh(row, value), 1))
        ties = jnp.where(value > -jnp.inf, ties, 0)  # else all are kept
        end = End(value, jnp.where(is_on, ties, prefix.end.ties))
        if marks.cut is not None:
            is_cut = wanted & (marks.cut.light >= value)
            end = End(jnp.where(is_cut, marks.cut.light, value), jnp.where(is_cut, 0, end.ties))
        own = stacked(weigh_above(tops.logits, row, end.value))
        sums = jnp.where(per_row(marks.status, sums) == TOLD, sums, own)
        prefix = Prefix(end, *unstacked(sums))
        return (prefix, _wide.select(is_asked & counts, mass(prefix, row), total)), None

    counts = [True] * (settings.top_k is not None) + [False] * (settings.top_p is not None)
    counts = counts or [False]  # min_p alone
    is_last = [False] * (len(counts) - 1) + [True]
    steps = jnp.array(counts, bool), jnp.array(is_last, bool)
    above, tied = unstacked(everything)
    total = _wide.add_up(above, axes=(1,))
    nothing = jnp.zeros_like(total[0])
    all_kept = Prefix(End(jnp.full_like(row.top, -jnp.inf), nothing), above, tied)
    (prefix, _), _ = lax.scan(apply, (all_kept, total), steps)
    return prefix
