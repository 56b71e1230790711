"""What is kept, by sorting a few of the largest logits: for GPUs, which wait for their host at
every loop and branch, and sort a few thousand numbers in one kernel.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._bracket import rank, value_of
from sampling_jax._chunks import LANES, first_light, to_chunks
from sampling_jax._filters import filters_on, min_p_threshold, top_p_target
from sampling_jax._locate import End, Prefix, Weigh, all_above
from sampling_jax._mass import mass
from sampling_jax._rows import alike, at, per_row
from sampling_jax._tops import DEPTH, Tops, largest_of
from sampling_jax._weights import Row, clean, numbers, row_weights, scale
from sampling_jax._wide import Wide

BLOCK = 16  # of running sums
SIDE = 16  # chunks whose lanes are taken together
BEYOND = np.int32(0x7FFFFF)  # so many ranks are above that of +inf
LEAST = np.iinfo(np.int32).min  # the least key
SIGN = np.uint32(2**31)  # makes an unsigned number of a rank, in the same order


def sorted_prefix(logits: Array, settings: RowSettings) -> tuple[Row, Prefix, Array]:
    """What settings [N] keep of logits [N, V], clean or not; and bool [N], whether that is right:
    it is, where it ends among the tops of lanes.
    """
    x = to_chunks(logits)
    columns, floors = _columns(_key(x))
    few = _ranking(*_lanes(columns, floors))
    row = Row(few.logits[:, 0], scale(settings.temperature))
    everything = _chunk_sums(row_weights(row, x))
    end, is_known = _end_of_few(few, row, settings, _wide.add_up(everything, axes=(1,)))
    prefix = _up_to(end, row, settings, [_value(part) for part in columns], everything)
    return row, prefix, is_known | ~_is_any_on(row, settings)


def whole_prefix(logits: Array, settings: RowSettings) -> tuple[Row, Prefix]:
    """What settings [N] keep of logits [N, V], clean or not, by passes over all of them."""
    x = to_chunks(logits)
    top = clean(jnp.max(jnp.max(numbers(x), axis=(2, 3)), axis=1))
    settings, top = alike((settings, top))
    row = Row(top, scale(settings.temperature))
    everything = _chunk_sums(row_weights(row, x))
    if settings.top_k is settings.top_p is settings.min_p is None:
        return row, all_above(jnp.full_like(top, -jnp.inf), everything)
    x = clean(x).reshape(*x.shape[:2], -1)
    end = _end_of_all(x, row, settings, _wide.add_up(everything, axes=(1,)))
    return row, _up_to(end, row, settings, [x], everything)


def _is_any_on(row: Row, settings: RowSettings) -> Array:
    """Bool [N]: whether there is anything, and it is filtered."""
    k_on, p_on, m_on = filters_on(settings, row.top)
    return (k_on | p_on | m_on) & (row.top > -jnp.inf)


def _up_to(
    end: End, row: Row, settings: RowSettings, parts: list[Array], everything: Wide
) -> Prefix:
    """The prefix up to an end, given logits [N, chunks, n] that hold all of it, and what all of
    each chunk weigh; all where nothing is filtered.
    """
    is_on = _is_any_on(row, settings)
    end = End(jnp.where(is_on, end.value, -jnp.inf), jnp.where(is_on, end.ties, 0))
    above, tied = _above(parts, row, end.value)
    above = _wide.select(is_on[:, None], above, everything)
    return Prefix(end, above, jnp.where(is_on[:, None], tied, 0))


def _key(x: Array) -> Array:
    """int32 in the order of the floats, but NaN first: comparisons of floats, which NaN fails, a
    compiler makes in a pass of their own.
    """
    return rank(x.astype(jnp.float32)) + BEYOND


def _value(key: Array) -> Array:
    """The clean float32 of a key."""
    return clean(value_of(key - BEYOND))


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
    keys = jnp.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
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
    kept = jnp.full_like(k_on, size, jnp.int32)
    if settings.top_k is not None:
        kept = jnp.where(k_on, settings.top_k, size)
    first = kept
    if settings.top_p is not None:
        upto = _running_sums(_wide.widen(weights))
        if settings.top_k is not None:
            total = _wide.select(k_on, (at(upto[0], first - 1), at(upto[1], first - 1)), total)
        is_short = _wide.greater(_wide.column(top_p_target(settings.top_p, total)), upto)
        crossing = 1 + jnp.sum(is_short, axis=1, dtype=jnp.int32)
        kept = jnp.where(p_on, jnp.minimum(kept, crossing), kept)
    if settings.min_p is not None:
        is_light = weights < min_p_threshold(settings.min_p)[:, None]
        place = lax.broadcasted_iota(jnp.int32, x.shape, 1)
        kept = jnp.minimum(kept, jnp.min(jnp.where(is_light, place, size), axis=1))
    kept = jnp.minimum(kept, size)
    value = at(x, kept - 1)
    before = jnp.sum(x > value[:, None], axis=1, dtype=jnp.int32)
    ties = jnp.where(value > -jnp.inf, kept - before, 0)  # else all are kept
    # top_p needs the total of what top_k keeps, wherever it ends itself.
    deepest = jnp.where(k_on & p_on, at(x, first - 1), value)
    return End(value, ties.astype(jnp.uint32)), (deepest > floor) | (floor == -jnp.inf)


def _end_of_all(x: Array, row: Row, settings: RowSettings, total: Wide) -> End:
    """Where what settings keep of clean logits x [N, chunks, n] ends."""
    k_on, p_on, _ = filters_on(settings, row.top)
    end = End(jnp.full_like(row.top, -jnp.inf), jnp.zeros_like(row.top, jnp.uint32))

    def shorter(is_on: Array, weigh: Weigh, target: Wide) -> End:
        new = _shortest(x, weigh, target)
        return End(jnp.where(is_on, new.value, end.value), jnp.where(is_on, new.ties, end.ties))

    def weigh(x: Array) -> Array:
        return row_weights(row, x)

    if settings.top_k is not None:
        target = _wide.widen(settings.top_k.astype(jnp.uint32))
        end = lax.cond(  # rows that end deep seldom have a top_k
            jnp.any(k_on),
            lambda: shorter(k_on, lambda x: jnp.ones_like(x, jnp.uint32), target),
            lambda: end,
        )
        if settings.top_p is not None:
            total = mass(Prefix(end, *_above([x], row, end.value)), row)
    if settings.top_p is not None:
        end = shorter(p_on, weigh, top_p_target(settings.top_p, total))
    if settings.min_p is not None:
        light = first_light(x, weigh(x), min_p_threshold(settings.min_p))
        is_cut = light >= end.value
        end = End(jnp.where(is_cut, light, end.value), jnp.where(is_cut, 0, end.ties))
    return end


def _shortest(x: Array, weigh: Weigh, target: Wide) -> End:
    """Where the shortest prefix of clean x [N, chunks, n] whose weights reach a target ends.

    Its rank is found two bits at a time, in as many passes as any input needs: a loop that could
    stop would wait for the host each time.
    """
    weights, ranks = weigh(x), lax.bitcast_convert_type(rank(x), jnp.uint32) ^ SIGN
    low = jnp.zeros_like(target[0])  # all from here up reach the target
    above = low, low  # what those weigh that surely do not
    for shift in range(30, -2, -2):
        pivots = [low + np.uint32(i << shift) for i in (1, 2, 3)]
        parts = [jnp.where(ranks >= per_row(pivot, x), weights, 0) for pivot in pivots]
        sums = _wide.sums(*(half for part in parts for half in _wide.widen(part)), axes=(2,))
        sums = [half for i in (0, 2, 4) for half in _wide.carry(sums[i], sums[i + 1])]
        sums = _wide.sums(*sums, axes=(1,))
        masses = [_wide.carry(sums[i], sums[i + 1]) for i in (0, 2, 4)]
        is_missed = [_wide.greater(target, each) for each in masses]
        for i in (2, 1, 0):
            above = _wide.select(is_missed[i], masses[i], above)
        for i in (0, 1, 2):
            low = jnp.where(is_missed[i], low, pivots[i])
    value = value_of(lax.bitcast_convert_type(low ^ SIGN, jnp.int32))
    ties = _wide.quotient(_wide.subtract(target, above), jnp.maximum(weigh(value), 1))
    return End(value, jnp.where(value > -jnp.inf, ties, 0))  # else all are kept


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
    parts = (jnp.where(is_before, part[:, :, None], 0) for part in number)
    high, low = _wide.sums(*parts, axes=(1,))
    return _wide.carry(high, low)


def _chunk_sums(weights: Array) -> Wide:
    """Wide [N, chunks] from uint32 weights below 2**31, [N, chunks, rows, lanes]."""
    n, chunks, rows, lanes = weights.shape
    if rows % 2 == 0:  # two weights add up in 32 bits
        pairs = weights.reshape(n, chunks, 2, rows // 2, lanes)
        weights = pairs[:, :, 0] + pairs[:, :, 1]
    weights = weights.reshape(n, chunks, -1)
    return _wide.carry(*_wide.sums(*_wide.widen(weights), axes=(2,)))


def _above(parts: list[Array], row: Row, value: Array) -> tuple[Wide, Array]:
    """Of each chunk of parts [N, chunks, lanes], the weights of all above a value [N], and how many
    are equal to it.
    """
    bound = per_row(value, parts[0])
    high, low, tied = (jnp.zeros_like(parts[0], jnp.uint32) for _ in range(3))
    for x in parts:
        more = _wide.widen(jnp.where(x > bound, row_weights(row, x), 0))
        high, low = high + more[0], low + more[1]
        tied = tied + (x == bound).astype(jnp.uint32)
    high, low, tied = _wide.sums(high, low, tied, axes=(2,))
    return _wide.carry(high, low), tied
