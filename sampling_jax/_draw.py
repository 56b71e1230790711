"""A token of each row, from what its settings keep: found as suits the device."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._filters import is_filtered
from sampling_jax._greedy import most_likely
from sampling_jax._locate import Prefix, locate
from sampling_jax._passes import whole_prefix
from sampling_jax._prefix import find_prefix
from sampling_jax._rows import GPU_GROUP, Rows, alike, group_size, packed, unpacked, where_wanted
from sampling_jax._sorted import sorted_prefix
from sampling_jax._weights import Row, is_greedy, plain, row_weights
from sampling_jax._where import where

Find = Callable[[Array, RowSettings], tuple[Row, Prefix]]


class Kept(NamedTuple):
    """What there is to draw from in N rows."""

    logits: Array  # float32, or narrower, [N, V]
    row: Row
    prefix: Prefix
    greedy: Array  # bool [N]


def keep(logits: Array, settings: RowSettings, find: Find = find_prefix) -> Kept:
    """What settings [N] keep of logits [N, V]."""
    logits = plain(logits)
    return Kept(logits, *find(logits, settings), is_greedy(settings.temperature))


def draw(bits: Array, kept: Kept) -> Array:
    """int32 [N] from bits [N, 2]."""
    logits, row, prefix, greedy = kept
    # A greedy row weighs only its largest logits; with no randomness it takes the first of them.
    bits = where(greedy[:, None], jnp.uint32(0), bits)
    token = locate(partial(row_weights, row), logits, prefix, partial(_wide.fraction, bits))
    return where(row.top > -jnp.inf, token, -1)


Draws = Callable[[Array, Kept], Rows]


def drawn(
    draws: Draws[Rows],
    of: Callable[[Array], Rows],
    bits: Array,
    logits: Array,
    settings: RowSettings,
) -> Rows:
    """What is drawn by bits [N, 2] from what settings [N] keep of logits [N, V].

    Args:
      draws: the same, of what is kept.
      of: the same, of the most likely tokens int32 [N], if all rows are greedy.
    """
    by_search, by_sort = partial(_by_search, draws, of), partial(_by_sort, draws)
    if jax.default_backend() != "gpu":  # or all would wait until both are traced
        return by_search(bits, logits, settings)
    result: Rows = lax.platform_dependent(
        bits, logits, settings, cuda=by_sort, rocm=by_sort, default=by_search
    )
    return result


def _by_search(
    draws: Draws[Rows],
    of: Callable[[Array], Rows],
    bits: Array,
    logits: Array,
    settings: RowSettings,
) -> Rows:
    settings, zero, _ = alike((settings, jnp.zeros_like(bits[:, 0], jnp.int32), logits[:, 0]))
    result: Rows = lax.cond(
        jnp.all(is_greedy(settings.temperature)),
        lambda: of(most_likely(logits) + zero),
        lambda: draws(bits, keep(logits, settings)),
    )
    return result


def _by_sort(draws: Draws[Rows], bits: Array, logits: Array, settings: RowSettings) -> Rows:
    x = plain(logits)
    settings, zero, _ = alike((settings, jnp.zeros_like(bits[:, 0]), x[:, 0]))
    bits = bits + zero[:, None]

    if not is_filtered(settings):
        return draws(bits, keep(x, settings, whole_prefix))

    def again(state: Any, x: Array) -> Any:
        bits, settings = unpacked(state[0], given)
        return state[0], draws(bits, keep(x, settings, whole_prefix))

    row, prefix, is_known = sorted_prefix(x, settings)
    rows = draws(bits, Kept(x, row, prefix, is_greedy(settings.temperature)))
    # At the end, when the host has nothing left to prepare: it waits for the answer.
    given = bits, settings
    # With a barrier, or a compiler makes a kernel of each of these.
    of_rows = lax.optimization_barrier(packed(given))
    size = group_size(x.shape[1], GPU_GROUP)
    _, result = where_wanted(again, ~is_known, (of_rows, rows), x, size)
    return result
