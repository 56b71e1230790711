"""What is kept, by sorting a few of the largest logits: for GPUs, which wait for their host at
every loop and branch, and sort a few thousand numbers in one kernel.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._chunks import LANES, to_chunks
from sampling_jax._filters import filters_on, is_any_on, min_p_threshold, top_p_target
from sampling_jax._locate import End, Prefix
from sampling_jax._passes import chunk_sums_at_once, up_to
from sampling_jax._rows import at
from sampling_jax._tops import DEPTH, Tops, largest_of
from sampling_jax._weights import Row, clean, row_weights, scale
from sampling_jax._where import where
from sampling_jax._wide import Wide

BLOCK = 16  # of running sums
SIDE = 16  # chunks whose lanes are taken together
BEYOND = np.int32(0x7FFFFF)  # so many ranks are above that of +inf
LEAST = np.iinfo(np.int32).min  # the least key


def sorted_prefix(logits: Array, settings: RowSettings) -> tuple[Row, Prefix, Array]:
    """What settings [N] keep of logits [N, V], clean or not; and bool [N], whether that is right:
    it is, where it ends among the tops of lanes.
    """
    x = to_chunks(logits)
    columns, floors = _columns(_key(x))
    few = _ranking(*_lanes(columns, floors))
    row = Row(few.logits[:, 0], scale(settings.temperature))
    everything = chunk_sums_at_once(row_weights(row, x))
    end, is_known = _end_of_few(few, row, settings, _wide.add_up(everything, axes=(1,)))
    prefix = up_to(end, row, settings, [_value(part) for part in columns], everything)
    return row, prefix, is_known | ~is_any_on(settings, row.top)


def _key(x: Array) -> Array:
    """int32 in the order of the floats, but NaN first: comparisons of floats, which NaN fails, a
    compiler makes in a pass of their own.
    """
    return _turned(lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)) + BEYOND


def _value(key: Array) -> Array:
    """The clean float32 of a key."""
    return clean(lax.bitcast_convert_type(_turned(key - BEYOND), jnp.float32))


def _turned(bits: Array) -> Array:
    """The bits of floats as int32 in their order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _columns(keys: Array) -> tuple[list[Array], list[Array]]:
    """The largest few [N, chunks, lanes] each of the columns of keys [N, chunks, rows, lanes]; and,
    if there is more, the least of them: what is left out is at most those.
    """
    n, chunks, rows, lanes = keys.shape
    if rows <= DEPTH:
        return [keys[:, :, i] for i in range(rows)], []
    pairs = keys.reshape(n, chunks, rows // 2, 2, lanes)
    first, second = pairs[:, :, :, 0], pairs[:, :, :, 1]
    nothing = jnp.full_like(first, LEAST)
    sorted_fours = [jnp.maximum(first, second), jnp.minimum(first, second), nothing, nothing]
    tops = largest_of(sorted_fours, 2, LEAST)
    return tops, tops[-1:]


def _lanes(columns: list[Array], floors: list[Array]) -> tuple[list[Array], list[Array]]:
    """The same of the lanes of groups of chunks, twice as deep."""
    n, chunks, lanes = columns[0].shape
    if chunks <= SIDE // 4:  # few enough to sort the tops of columns
        return columns, floors
    size = min(chunks, SIDE)
    padding = ((0, 0), (0, -chunks % size), (0, 0))
    padded = [jnp.pad(part, padding, constant_values=LEAST) for part in columns]
    groups = [part.reshape(n, -1, size, lanes) for part in padded]
    tops = largest_of([*groups, *[jnp.full_like(groups[0], LEAST)] * DEPTH], 2, LEAST)
    return tops, [*floors, tops[-1]]


def _ranking(parts: list[Array], floors: list[Array]) -> Tops:
    """All of parts [N, ...], in falling order: [N, n]."""
    keys = jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)
    x = _value(~lax.sort(~keys, dimension=1, is_stable=False))
    floor = jnp.full_like(x[:, 0], -jnp.inf)
    for part in floors:
        floor = jnp.maximum(floor, _value(jnp.max(part, axis=(1, 2))))
    return Tops(x, floor)


def _end_of_few(few: Tops, row: Row, settings: RowSettings, total: Wide) -> tuple[End, Array]:
    """Where what settings keep ends in a ranking of few [N, n]; and bool [N], whether it is right,
    as it ends among those.
    """
    x, floor = few
    size = x.shape[1]
    weights = row_weights(row, x)
    k_on, p_on, _ = filters_on(settings, row.top)
    place = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    first = jnp.full_like(k_on, size, jnp.int32)
    if settings.top_k is not None:
        first = where(k_on, settings.top_k, size)
    is_kept = place < first[:, None]
    if settings.top_p is not None:
        upto = _running_sums(_wide.widen(weights))
        if settings.top_k is not None:
            total = _wide.select(k_on, (at(upto[0], first - 1), at(upto[1], first - 1)), total)
        is_short = _wide.greater(_wide.column(top_p_target(settings.top_p, total)), upto)
        is_kept = is_kept & (_shifted(is_short, True) | ~p_on[:, None])
    if settings.min_p is not None:
        is_kept = is_kept & (weights >= min_p_threshold(settings.min_p)[:, None])
    # What is kept is not counted, but ends with the last of these; so one kernel finds all of it.
    ends = where(is_kept, place + 1, 0)
    begins = where((place == 0) | (x != _shifted(x, -jnp.inf)), ends, 0)

    def later(a: list[Array], b: list[Array]) -> list[Array]:
        is_later = a[1] > b[1]
        return [jnp.maximum(a[0], b[0]), *(where(is_later, v, w) for v, w in zip(a[1:], b[1:]))]

    start = [jnp.int32(0), jnp.int32(0), jnp.float32(-jnp.inf)]
    kept, begin, value = lax.reduce([ends, begins, x], start, later, (1,))
    ties = where(value > -jnp.inf, kept - begin + 1, 0)  # else all are kept
    # top_p needs the total of what top_k keeps, wherever it ends itself.
    deepest = where(k_on & p_on, at(x, first - 1), value)
    return End(value, ties.astype(jnp.uint32)), (deepest > floor) | (floor == -jnp.inf)


def _shifted(x: Array, first: Any) -> Array:
    """[N, n] with what is one place before."""
    return lax.pad(x[:, :-1], jnp.asarray(first, x.dtype), [(0, 0, 0), (1, 0, 0)])


def _running_sums(number: Wide) -> Wide:
    """Inclusive running sums wide [N, n]."""
    n, size = number[0].shape
    if size > LANES:  # and a multiple of BLOCK
        blocks = _running_sums((number[0].reshape(-1, BLOCK), number[1].reshape(-1, BLOCK)))
        inside = [part.reshape(n, -1, BLOCK) for part in blocks]
        last = inside[0][:, :, -1], inside[1][:, :, -1]
        before = _wide.subtract(_running_sums(last), last)
        high, low = _wide.add((inside[0], inside[1]), _wide.column(before))
        return high.reshape(n, size), low.reshape(n, size)
    place = lax.iota(jnp.int32, size)
    is_before = (place[:, None] <= place[None, :])[None]
    # Along the second axis, so that each thread adds up on its own.
    parts = (where(is_before, part[:, :, None], 0) for part in number)
    high, low = _wide.sums(*parts, axes=(1,))
    return _wide.carry(high, low)
