"""A prefix of a ranking, and the token in it where a running sum of weights ends."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sampling_jax import _wide
from sampling_jax._checks import places
from sampling_jax._chunks import chunk_of
from sampling_jax._rows import per_row
from sampling_jax._where import where
from sampling_jax._wide import Wide

TIE = np.uint32(2**31)  # marks a token among weights, which are below
Weigh = Callable[[Array], Array]  # uint32 weights below 2**31 of clean logits [N, ...], or of each


class End(NamedTuple):
    """Where a prefix ends: in are the logits above `value`, and the first `ties` equal to it."""

    value: Array  # float32 [N]
    ties: Array  # uint32 [N]


class Prefix(NamedTuple):
    """What is kept of chunks of logits."""

    end: End
    above: Wide  # wide [N, chunks], the weights of the logits above the end
    tied: Array  # uint32 [N, chunks], how many logits are equal to the end


def all_above(value: Array, sums: Wide) -> Prefix:
    """What is above a value [N], given what it weighs in each chunk."""
    nothing = jnp.zeros_like(sums[0])
    return Prefix(End(value, nothing[:, 0]), sums, nothing)


def locate(
    weigh: Weigh,
    x: Array,
    prefix: Prefix,
    bound_of: Callable[[Wide], Wide],
    without: Array | None = None,
) -> Array:
    """int32 [N]: the first id of a prefix whose running sum of weights exceeds a bound.

    Args:
      weigh: as the prefix was weighed.
      x: [N, V], what it is a prefix of: logits, clean or not, or weights.
      bound_of: gives it, wide [N], of the weight of the prefix, wide [N], which is more.
      without: int32 [N, n], ids above the end that weigh nothing, and that the prefix leaves out;
        -1 is none.
    """
    end, above, tied = prefix
    each = weigh(end.value)
    sums, kept = _running(above, tied, each, end.ties)
    rest = bound_of((sums[0][:, -1], sums[1][:, -1]))
    chunk, rest, ties = _first_over(rest, sums, kept, end.ties)
    start, x, is_own = chunk_of(x, chunk)
    rows, lanes = x.shape[1:]
    bound = per_row(end.value, x)
    # In one word, as weights are below TIE, and what is tied has none.
    words = where(x > bound, weigh(x), where(x == bound, TIE, 0))
    words = where(is_own, words, 0)
    if without is not None:
        gone = places(without - start[:, None], rows * lanes)
        words = words.reshape(-1, rows * lanes).at[gone].set(0).reshape(words.shape)
    high, low, tied = _wide.sums(*_wide.widen(words & ~TIE), words // TIE, axes=(2,))
    running = _running(_wide.carry(high, low), tied, each, ties)
    row, rest, ties = _first_over(rest, *running, ties)
    words = jnp.take_along_axis(words, row[:, None, None], axis=1)[:, 0]
    weights, is_tie = words & ~TIE, words // TIE
    running = _running(_wide.widen(weights), is_tie, each, ties)
    lane, _, _ = _first_over(rest, *running, ties)
    return start + row * lanes + lane


def draw_by(bits: Array, weights: Array, sums: Wide, without: Array | None = None) -> Array:
    """int32 [N], one of the tokens by their weights [N, chunks, rows, lanes]; -1 if all are 0.

    Args:
      bits: uint32 [N, 2].
      sums: wide [N, chunks], of the weights, less those of the ids in `without`.
      without: as in `locate`.
    """
    prefix = all_above(jnp.zeros(weights.shape[0], jnp.uint32), sums)
    flat = weights.reshape(weights.shape[0], -1)
    token = locate(lambda weights: weights, flat, prefix, partial(_wide.fraction, bits), without)
    return where(_wide.is_positive(_wide.add_up(sums, axes=(1,))), token, -1)


def _running(above: Wide, tied: Array, each: Array, ties: Array) -> tuple[Wide, Array]:
    """Running sums of parts [N, n]: of the weights, and of how many of the ties [N] are in them."""
    high, low, upto = _wide.running_sums(*above, tied)
    kept = jnp.minimum(ties[:, None], upto)
    return _wide.add(_wide.carry(high, low), _wide.times(kept, each[:, None])), kept


def _first_over(rest: Wide, sums: Wide, kept: Array, ties: Array) -> tuple[Array, Wide, Array]:
    """Index [N] of the first part whose running sum exceeds `rest`; `rest` and `ties` inside it."""
    # Running sums never fall, so those not over `rest` come first.
    passed = ~_wide.greater(sums, _wide.column(rest))
    place = where(passed, lax.broadcasted_iota(jnp.uint32, passed.shape, 1) + 1, 0)

    def later(a: list[Array], b: list[Array]) -> list[Array]:
        return [where(a[0] > b[0], x, y) for x, y in zip(a, b, strict=True)]

    index, high, low, used = lax.reduce([place, *sums, kept], [jnp.uint32(0)] * 4, later, (1,))
    is_first = index == 0  # then what is with it means nothing
    before = _wide.keep(~is_first, (high, low))
    return (
        index.astype(jnp.int32),
        _wide.subtract(rest, before),
        ties - where(is_first, 0, used),
    )
