"""Which tokens settings keep: a ranking up to the last of them."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._greedy import most_likely
from sampling_jax._locate import Prefix, locate
from sampling_jax._mass import kept_sums, mass
from sampling_jax._prefix import find_prefix
from sampling_jax._rows import alike, at, fold_vmap, per_row, taken
from sampling_jax._weights import Row, clean, is_greedy, plain
from sampling_jax._where import where
from sampling_jax._wide import Wide
from sampling_jax.reference import HEAVIEST


class Last(NamedTuple):
    """The last token of a ranking that is kept: in are larger logits, and equal ones up to it."""

    value: Array  # float32 [N]
    id: Array  # int32 [N]; -1 if none that is equal is in


def is_kept(last: Last, x: Array, ids: Array) -> Array:
    """Bool [N, ...], which of clean logits [N, ...] of tokens int32 [N or 1, ...] are in."""
    value, upto = per_row(last.value, x), per_row(last.id, x)
    return ((x > value) | ((x == value) & (ids <= upto))) & (x > -jnp.inf)


@fold_vmap
def kept_rows(logits: Array, settings: RowSettings) -> Array:
    """Bool [N, V] from logits [N, V] and settings [N]."""
    logits, settings = _plain(logits, settings)
    if settings.top_k is settings.top_p is settings.min_p is None:
        last = _all_of(settings)
    else:
        last = _last_of(logits, find_prefix(logits, settings)[1])
    x = clean(logits)
    last = _or_greedy(logits, settings, last)
    return is_kept(last, x, lax.broadcasted_iota(jnp.int32, x.shape, 1))


@fold_vmap
def weighed(logits: Array, settings: RowSettings) -> tuple[Row, Last, Wide]:
    """The last that settings [N] keep of logits [N, V], and what all that is kept weighs."""
    logits, settings = _plain(logits, settings)
    row, prefix = find_prefix(logits, settings)
    if settings.top_k is settings.top_p is settings.min_p is None:
        last = _all_of(settings)
    else:
        last = _last_of(logits, prefix)
    greedy = is_greedy(settings.temperature) & (row.top > -jnp.inf)
    one = _wide.widen(jnp.full_like(row.top, HEAVIEST, jnp.uint32))
    total = _wide.select(greedy, one, mass(prefix, row))
    return row, _or_greedy(logits, settings, last), total


def _plain(logits: Array, settings: RowSettings) -> tuple[Array, RowSettings]:
    settings, _ = alike((settings, logits[:, 0]))
    return plain(logits), settings


def _all_of(settings: RowSettings) -> Last:
    none = jnp.full_like(settings.temperature, -1, jnp.int32)
    return Last(jnp.full_like(settings.temperature, -jnp.inf), none)


def _last_of(logits: Array, prefix: Prefix) -> Last:
    """The last of a prefix of logits [N, V], clean or not."""
    value = prefix.end.value
    _, ties = kept_sums(prefix)

    def is_tie(x: Array) -> Array:
        return (x == per_row(value, x)).astype(jnp.uint32)

    nothing = _wide.keep(jnp.zeros_like(prefix.tied, bool), prefix.above)
    rest = _wide.widen(jnp.maximum(ties, 1) - 1)
    last = locate(is_tie, logits, prefix._replace(above=nothing), lambda _: rest)
    return Last(value, where(ties > 0, last, -1))


def _or_greedy(logits: Array, settings: RowSettings, last: Last) -> Last:
    """The most likely token alone in greedy rows: their filters keep it whatever they are."""
    greedy = is_greedy(settings.temperature)

    def most() -> Last:
        first = most_likely(logits)
        top = clean(taken(lambda x: at(x, first), logits))
        return Last(where(greedy, top, last.value), where(greedy, first, last.id))

    result: Last = lax.cond(jnp.any(greedy), most, lambda: last)
    return result
