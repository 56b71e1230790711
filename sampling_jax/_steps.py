"""top_k, then top_p: the shortest prefix of a ranking whose weights reach a target, twice."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._bracket import opened, rank, value_of
from sampling_jax._checks import LARGEST
from sampling_jax._chunks import first_light
from sampling_jax._filters import filters_on, min_p_threshold, top_p_target
from sampling_jax._locate import End, Prefix
from sampling_jax._marks import ASKED, TOLD, Cut, Known, Marks, Weigh
from sampling_jax._mass import mass, stacked, unstacked, weigh_above
from sampling_jax._rows import packed, per_row, unpacked
from sampling_jax._search import search, tell
from sampling_jax._tops import Tops, lane_tops
from sampling_jax._weights import Row, is_greedy, row_weights
from sampling_jax._where import where
from sampling_jax._wide import Wide
from sampling_jax.reference import LOG2_E

OCTAVES = np.float32(32 / LOG2_E)  # so far below the largest logit, at temperature 1, weights are 0


class Fixed(NamedTuple):
    """What every step reads of N rows."""

    row: Row
    settings: RowSettings
    floor: Array  # float32 [N], of the tops of lanes
    top_floor: Array  # float32 [N], of the tops of columns
    is_known: Array  # bool [], whether it is known what all weigh, in rows that need it
    cut: Cut | None


def shorten(
    logits: Array,
    tops: Tops,
    row: Row,
    settings: RowSettings,
    everything: Array,
    is_known: Array,
) -> Prefix:
    """What the filters keep of logits [N, V], clean or not.

    Args:
      tops: those of their columns.
      everything: what all of each chunk weigh, wide [N, chunks], and zeros uint32 [N, chunks],
        stacked; read where top_p is on and top_k is off, and where no filter is on.
      is_known: bool [], whether it holds that; else it is found here, in the step of top_k.
    """
    is_ranked = not settings.top_k is settings.top_p is None
    few = lane_tops(tops) if is_ranked else tops
    # Zeros change nothing: they vary over devices as the settings do, if they do.
    few = few._replace(logits=few.logits + per_row(jnp.zeros_like(row.top), few.logits))
    cut = None
    if settings.min_p is not None:
        threshold = min_p_threshold(settings.min_p)
        cut = Cut(first_light(tops.logits, row_weights(row, tops.logits), threshold), threshold)
    every = Fixed(row, settings, few.floor, tops.floor, is_known, cut)
    total = _wide.add_up(unstacked(everything)[0], axes=(1,))
    all_kept = End(jnp.full_like(row.top, -jnp.inf), jnp.zeros_like(total[0])), total

    def apply(
        counts: Array | bool, is_last: Array | bool, state: tuple[Array, Array], rows: Fixed
    ) -> tuple[Array, Array]:
        """Apply top_k if it `counts`, else top_p; and then min_p, in the last step."""

        def weigh(row: Row, x: Array) -> Array:
            one = jnp.uint32(1)
            return one if settings.top_p is None else where(counts, one, row_weights(row, x))

        last, total = unpacked(state[0], all_kept)
        k_on, p_on, m_on = filters_on(rows.settings, rows.row.top)
        is_on = where(counts, k_on, p_on)
        is_asked = is_last | (p_on & (k_on | ~rows.is_known))
        # What ends at the largest logit can lose ties alone, and what chunks weigh above it stays.
        is_same = p_on & jnp.logical_not(counts) & (last.value == rows.row.top)
        is_told = (~(k_on | p_on | m_on) & rows.is_known) | is_same
        status = where(is_told, jnp.uint32(TOLD), is_asked.astype(jnp.uint32) * ASKED)
        known = _begun(counts, is_last, rows, last, total, is_on, status, logits.shape[1])
        if is_ranked:
            known, sums = search(known, few.logits, state[1], logits, weigh)
        else:
            known, sums = tell(known, state[1], logits)
        end = _end_of(known, last, rows, is_on, weigh)
        # Of the row outside, or what all tops weigh is computed in both steps.
        own = stacked(weigh_above(tops.logits, row, end.value))
        sums = where(per_row(known.marks.status, sums) == TOLD, sums, own)
        if is_last is not True:
            kept = mass(Prefix(end, *unstacked(sums)), rows.row)
            total = _wide.select(is_asked & counts, kept, total)
        return packed((end, total)), sums

    state = packed(all_kept), everything
    if settings.top_k is None or settings.top_p is None:
        state = apply(settings.top_k is not None, True, state, every)
    else:

        def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            # With a barrier, or a compiler does parts of it before the loop, in a kernel each.
            return apply(i == 0, i == 1, *lax.optimization_barrier((state, every)))

        state = lax.fori_loop(0, 2, step, state)
    (end, _), sums = unpacked(state[0], all_kept), state[1]
    return Prefix(end, *unstacked(sums))


def _begun(
    counts: Array | bool,
    is_last: Array | bool,
    rows: Fixed,
    last: End,
    total: Wide,
    is_on: Array,
    status: Array,
    vocabulary: int,
) -> Known:
    """What is known before a search, from where the prefix `last` ended and what it weighs."""
    row, settings, floor, top_floor, _, last_cut = rows
    target, all_weigh = total, total
    if settings.top_p is not None:
        target = top_p_target(settings.top_p, total)
    if settings.top_k is not None:
        top_k = jnp.maximum(settings.top_k, 1).astype(jnp.uint32)
        target = _wide.select(counts, _wide.widen(top_k), target)
        size = _wide.widen(jnp.full_like(top_k, vocabulary))
        all_weigh = _wide.select(counts, size, total)
    # Weights are 0 from 31 octaves down.
    reach = where(is_greedy(settings.temperature), 0, settings.temperature) * OCTAVES
    weightless = jnp.maximum(jnp.minimum(row.top, LARGEST) - reach, -LARGEST)
    least = rank(where(counts, -jnp.inf, weightless))
    least = jnp.maximum(least, rank(last.value))  # what is below is not kept
    cut = None
    if last_cut is not None:
        light, threshold = last_cut
        cut = Cut(where(is_last, light, -jnp.inf), where(is_last, threshold, 0))
        least = jnp.maximum(least, rank(cut.light))  # what is below is dropped anyhow
    bracket = opened(row.top, least, all_weigh, target, is_on, rank(last.value))
    return Known(bracket, Marks(floor, bracket.above, top_floor, status, row, cut))


def _end_of(known: Known, last: End, rows: Fixed, is_on: Array, weigh: Weigh) -> End:
    """Where the prefix ends, after a search."""
    bracket, marks = known
    value = value_of(bracket.low)
    missing = _wide.subtract(bracket.target, bracket.above)
    ties = _wide.quotient(missing, jnp.maximum(weigh(rows.row, value), 1))
    ties = where(value > -jnp.inf, ties, 0)  # else all are kept
    end = End(value, where(is_on, ties, last.ties))
    if marks.cut is None:
        return end
    is_cut = marks.cut.light >= value
    return End(where(is_cut, marks.cut.light, value), where(is_cut, 0, end.ties))
