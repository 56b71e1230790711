"""Which tokens may come next: biases, grammars, forbidden tokens and a minimum length."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sampling_jax._arguments import check_logits
from sampling_jax._checks import (
    LARGEST,
    check_array,
    check_lists,
    check_number,
    check_range,
    column,
    float32,
    int32,
    matrix,
    places,
    rows_of,
)
from sampling_jax._masks import unpack
from sampling_jax._meshes import sharded_like
from sampling_jax._where import where


def apply_logit_bias(logits: ArrayLike, ids: ArrayLike, values: ArrayLike) -> Array:
    """Add a bias to some tokens of logits [..., V]; what is -inf stays -inf.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      ids: [n] or [..., n], integer. Those outside [0, V), such as -1, are padding; those that
        occur again add up, in any order.
      values: of the shape of `ids`, floating, taken as float32. -inf bans the token, inf counts as
        the largest float32. Traced values: NaN is 0. A finite logit stays finite, but for a ban.

    Returns:
      float32 [..., V].

    Raises:
      TypeError, ValueError: as `sample`; ids and values of wrong types or shapes; a concrete NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> ids, values = jnp.array([0, 2, -1]), jnp.array([1.5, -jnp.inf, 0.0])
      >>> apply_logit_bias(jnp.zeros(4), ids, values).tolist()
      [1.5, 0.0, -inf, 0.0]
    """
    check_lists("ids", ids, check_logits(logits))
    shape = check_array("values", values, "floating")
    if shape != np.shape(ids):
        raise ValueError(
            f"values must have the shape {np.shape(ids)} of ids, got shape {shape}; pass one value "
            "for each id."
        )
    check_range("values", values, lambda v: ~np.isnan(v), "numbers", "-inf bans a token")
    result: Array = _add(logits, int32(ids), float32(values))
    return result


def apply_token_bitmask(logits: ArrayLike, bitmask: ArrayLike) -> Array:
    """Keep the tokens of logits [..., V] that a bitmask [..., W] allows; the rest become -inf.

    Bit j of word w allows token 32 * w + j, as xgrammar and llguidance write it.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      bitmask: [W] or [..., W], int32 or uint32; the leading axes broadcast to the batch. Tokens
        beyond its 32 * W bits are not allowed; bits beyond V mean nothing.

    Returns:
      float32 [..., V].

    Raises:
      TypeError, ValueError: as `sample`; a bitmask of another dtype, or that does not broadcast.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_token_bitmask(jnp.zeros(4), jnp.array([0b0101], jnp.uint32)).tolist()
      [0.0, -inf, 0.0, -inf]
    """
    batch = check_logits(logits)
    dtype = getattr(bitmask, "dtype", None)
    if dtype is not None and dtype not in (np.int32, np.uint32):
        raise TypeError(
            f"bitmask must have dtype int32 or uint32, got {dtype}; pack 32 tokens into each word."
        )
    check_lists("bitmask", bitmask, batch, "W")
    result: Array = _mask(logits, bitmask)
    return result


def suppress_tokens(logits: ArrayLike, ids: ArrayLike, active: ArrayLike | None = None) -> Array:
    """Make some tokens of logits [..., V] impossible: -inf.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      ids: [n] or [..., n], integer; those outside [0, V), such as -1, are padding.
      active: [] or broadcasts to [...], bool; off where it is False. None is True.

    Returns:
      float32 [..., V].

    Raises:
      TypeError, ValueError: as `sample`; ids of a wrong type or shape, `active` not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> suppress_tokens(jnp.zeros(3), jnp.array([1, -1])).tolist()
      [0.0, -inf, 0.0]
    """
    batch = check_logits(logits)
    check_lists("ids", ids, batch)
    active = True if active is None else active
    check_number("active", active, batch, "bool")
    result: Array = _suppress(logits, int32(ids), active)
    return result


def apply_min_length(
    logits: ArrayLike, length: ArrayLike, min_length: ArrayLike | None, stop_tokens: ArrayLike
) -> Array:
    """Make stop tokens of logits [..., V] impossible while a text is shorter than `min_length`.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      length: [] or broadcasts to [...], integer: how many tokens there are. Count the generated
        ones for vLLM's `min_tokens`, the prompt too for Hugging Face's `min_length`.
      min_length: [] or broadcasts to [...], integer. Off: None, and whatever `length` reaches.
      stop_tokens: [n] or [..., n], integer; those outside [0, V), such as -1, are padding.

    Returns:
      float32 [..., V].

    Raises:
      TypeError, ValueError: as `suppress_tokens`; lengths of a wrong type or shape, or concrete
        and negative.

    Example:
      >>> import jax.numpy as jnp
      >>> logits, stop_tokens = jnp.zeros((2, 3)), jnp.array([2])
      >>> apply_min_length(logits, jnp.array([4, 5]), 5, stop_tokens).tolist()
      [[0.0, 0.0, -inf], [0.0, 0.0, 0.0]]
    """
    batch = check_logits(logits)
    minimum = 0 if min_length is None else min_length
    for name, value in (("length", length), ("min_length", minimum)):
        check_number(name, value, batch, "integer")
        check_range(name, value, lambda n: n >= 0, ">= 0", "count tokens")
    check_lists("stop_tokens", stop_tokens, batch)
    result: Array = _delay(logits, int32(stop_tokens), int32(length), int32(minimum))
    return result


@jax.jit
@sharded_like("logits")
def _add(logits: Array, ids: Array, values: Array) -> Array:
    batch, vocabulary = logits.shape[:-1], logits.shape[-1]
    place = places(matrix(ids, batch), vocabulary)
    value = matrix(values, batch).astype(jnp.float32)
    # Sums of finite numbers: a +inf and a -inf among them would be NaN.
    step = jnp.clip(where(jnp.isnan(value), 0, value), -LARGEST, LARGEST)
    ban = where(value == -jnp.inf, value, jnp.inf)
    x = rows_of(logits)
    # What is finite stays so: an overflow to inf would take all the mass.
    biased = x.at[place].add(step, mode="drop")
    bound = where(biased > 0, LARGEST, -LARGEST)
    biased = where(jnp.isfinite(x) & jnp.isinf(biased), bound, biased)
    return biased.at[place].min(ban, mode="drop").reshape(logits.shape)


@jax.jit
@sharded_like("logits")
def _mask(logits: Array, bitmask: Array) -> Array:
    batch, vocabulary = logits.shape[:-1], logits.shape[-1]
    words = matrix(bitmask, batch).astype(jnp.uint32)
    return where(unpack(words, vocabulary), rows_of(logits), -jnp.inf).reshape(logits.shape)


@jax.jit
@sharded_like("logits")
def _suppress(logits: Array, ids: Array, active: Array) -> Array:
    batch, vocabulary = logits.shape[:-1], logits.shape[-1]
    place = places(matrix(ids, batch), vocabulary, column(active, batch))
    return rows_of(logits).at[place].set(-jnp.inf, mode="drop").reshape(logits.shape)


@jax.jit
@sharded_like("logits")
def _delay(logits: Array, ids: Array, length: Array, min_length: Array) -> Array:
    batch = logits.shape[:-1]
    too_short = jnp.broadcast_to(length, batch) < jnp.broadcast_to(min_length, batch)
    result: Array = _suppress(logits, ids, too_short)
    return result
