"""What is kept, by passes over all logits with no loop among them: for GPUs, which wait for their
host at each round of one.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._bracket import rank, value_of
from sampling_jax._chunks import first_light, to_chunks
from sampling_jax._filters import filters_on, is_any_on, is_filtered, min_p_threshold, top_p_target
from sampling_jax._locate import End, Prefix, Weigh, all_above
from sampling_jax._mass import mass
from sampling_jax._rows import alike, per_row
from sampling_jax._weights import Row, clean, numbers, row_weights, scale
from sampling_jax._where import where
from sampling_jax._wide import Wide

SIGN = np.uint32(2**31)  # makes an unsigned number of a rank, in the same order


def whole_prefix(logits: Array, settings: RowSettings) -> tuple[Row, Prefix]:
    """What settings [N] keep of logits [N, V], clean or not, by passes over all of them."""
    x = to_chunks(logits)
    top = clean(jnp.max(jnp.max(numbers(x), axis=(2, 3)), axis=1))
    settings, top = alike((settings, top))
    row = Row(top, scale(settings.temperature))
    everything = chunk_sums_at_once(row_weights(row, x))
    if not is_filtered(settings):
        return row, all_above(jnp.full_like(top, -jnp.inf), everything)
    x = clean(x).reshape(*x.shape[:2], -1)
    end = _end_of_all(x, row, settings, _wide.add_up(everything, axes=(1,)))
    return row, up_to(end, row, settings, [x], everything)


def up_to(
    end: End, row: Row, settings: RowSettings, parts: list[Array], everything: Wide
) -> Prefix:
    """The prefix up to an end, given logits [N, chunks, n] that hold all of it, and what all of
    each chunk weigh; all where nothing is filtered.
    """
    is_on = is_any_on(settings, row.top)
    end = End(where(is_on, end.value, -jnp.inf), where(is_on, end.ties, 0))
    above, tied = _above(parts, row, end.value)
    above = _wide.select(is_on[:, None], above, everything)
    return Prefix(end, above, where(is_on[:, None], tied, 0))


def _end_of_all(x: Array, row: Row, settings: RowSettings, total: Wide) -> End:
    """Where what settings keep of clean logits x [N, chunks, n] ends."""
    k_on, p_on, _ = filters_on(settings, row.top)
    end = End(jnp.full_like(row.top, -jnp.inf), jnp.zeros_like(row.top, jnp.uint32))

    def shorter(is_on: Array, weigh: Weigh, target: Wide) -> End:
        new = _shortest(x, weigh, target)
        return End(where(is_on, new.value, end.value), where(is_on, new.ties, end.ties))

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
        end = End(where(is_cut, light, end.value), where(is_cut, 0, end.ties))
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
        parts = [where(ranks >= per_row(pivot, x), weights, 0) for pivot in pivots]
        sums = _wide.sums(*(half for part in parts for half in _wide.widen(part)), axes=(2,))
        sums = [half for i in (0, 2, 4) for half in _wide.carry(sums[i], sums[i + 1])]
        sums = _wide.sums(*sums, axes=(1,))
        masses = [_wide.carry(sums[i], sums[i + 1]) for i in (0, 2, 4)]
        is_missed = [_wide.greater(target, each) for each in masses]
        for i in (2, 1, 0):
            above = _wide.select(is_missed[i], masses[i], above)
        for i in (0, 1, 2):
            low = where(is_missed[i], low, pivots[i])
    value = value_of(lax.bitcast_convert_type(low ^ SIGN, jnp.int32))
    ties = _wide.quotient(_wide.subtract(target, above), jnp.maximum(weigh(value), 1))
    return End(value, where(value > -jnp.inf, ties, 0))  # else all are kept


def chunk_sums_at_once(weights: Array) -> Wide:
    """The same as `_chunks.chunk_sums`, in fewer kernels of a GPU."""
    n, chunks, rows, lanes = weights.shape
    if rows % 2 == 0:  # two weights add up in 32 bits
        pairs = weights.reshape(n, chunks, 2, rows // 2, lanes)
        weights = pairs[:, :, 0] + pairs[:, :, 1]
    weights = weights.reshape(n, chunks, -1)
    return _wide.carry(*_wide.sums(*_wide.widen(weights), axes=(2,)))


def _above(parts: list[Array], row: Row, value: Array) -> tuple[Wide, Array]:
    """Of each chunk of parts [N, chunks, n], the weights of all above a value [N], and how many are
    equal to it.
    """
    bound = per_row(value, parts[0])
    high, low, tied = (jnp.zeros_like(parts[0], jnp.uint32) for _ in range(3))
    for x in parts:
        more = _wide.widen(where(x > bound, row_weights(row, x), 0))
        high, low = high + more[0], low + more[1]
        tied = tied + (x == bound).astype(jnp.uint32)
    high, low, tied = _wide.sums(high, low, tied, axes=(2,))
    return _wide.carry(high, low), tied
