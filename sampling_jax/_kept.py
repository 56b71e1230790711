"""Which tokens settings keep: a ranking up to the last of them."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._filters import is_filtered
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
    logits, settings = _alike(logits, settings)
    prefix = find_prefix(logits, settings)[1] if is_filtered(settings) else None
    x = clean(logits)
    ids = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return is_kept(_last_of(logits, settings, prefix), x, ids)


@fold_vmap
def weighed(logits: Array, settings: RowSettings) -> tuple[Row, Last, Wide]:
    """The last that settings [N] keep of logits [N, V], and what all that is kept weighs."""
    logits, settings = _alike(logits, settings)
    row, prefix = find_prefix(logits, settings)
    last = _last_of(logits, settings, prefix if is_filtered(settings) else None)
    greedy = is_greedy(settings.temperature) & (row.top > -jnp.inf)
    one = _wide.widen(jnp.full_like(row.top, HEAVIEST, jnp.uint32))
    return row, last, _wide.select(greedy, one, mass(prefix, row))


def _alike(logits: Array, settings: RowSettings) -> tuple[Array, RowSettings]:
    settings, _ = alike((settings, logits[:, 0]))
    return plain(logits), settings


def _last_of(logits: Array, settings: RowSettings, prefix: Prefix | None) -> Last:
    """The last of a prefix of logits [N, V], clean or not, or of all; in greedy rows the most
    likely token, which their filters keep whatever they are.
    """
    greedy = is_greedy(settings.temperature)
    if prefix is None:
        none = jnp.full_like(greedy, -1, jnp.int32)
        last = Last(jnp.full_like(settings.temperature, -jnp.inf), none)
    else:
        last = _last_tie(logits, prefix)

    def first() -> Last:
        id = most_likely(logits)
        top = clean(taken(lambda x: at(x, id), logits))
        return Last(where(greedy, top, last.value), where(greedy, id, last.id))

    result: Last = lax.cond(jnp.any(greedy), first, lambda: last)
    return result


def _last_tie(logits: Array, prefix: Prefix) -> Last:
    """The last of those equal to the end of a prefix."""
    value = prefix.end.value
    _, ties = kept_sums(prefix)

    def is_tie(x: Array) -> Array:
        return (x == per_row(value, x)).astype(jnp.uint32)

    nothing = _wide.keep(jnp.zeros_like(prefix.tied, bool), prefix.above)
    rest = _wide.widen(jnp.maximum(ties, 1) - 1)
    last = locate(is_tie, logits, prefix._replace(above=nothing), lambda _: rest)
    return Last(value, where(ties > 0, last, -1))
