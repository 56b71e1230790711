"""Which tokens a row has seen and generated."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sampling_jax._arguments import MAX_VOCABULARY
from sampling_jax._checks import (
    check_array,
    check_number,
    check_range,
    column,
    int32,
    matrix,
    places,
    static_integer,
)
from sampling_jax._masks import pack
from sampling_jax._meshes import sharded_like
from sampling_jax._where import where

MOST = 65535  # the largest count


class History(NamedTuple):
    """The tokens of each row so far: about 2.1 bytes for each row and token of the vocabulary.

    Make one with `init_history`, and a new one after each step with `update_history`; it is a
    pytree, and fits into the carry of `lax.scan`.
    """

    prompt: Array  # uint32 [..., ceil(V / 32)]; bit j of word w: token 32 * w + j is in the prompt
    counts: Array  # uint16 [..., V], how often each token was generated, at most 65535


def init_history(
    prompt_tokens: ArrayLike, vocab_size: int, prompt_length: ArrayLike | None = None
) -> History:
    """The history of rows that have a prompt [..., L] and no output yet.

    Args:
      prompt_tokens: [..., L], integer; L may be 0. Ids outside [0, vocab_size), such as -1, are
        padding.
      vocab_size: V, a Python integer, that of the logits to come.
      prompt_length: [] or broadcasts to [...], integer: what is at or beyond it is padding too.
        None is L.

    Returns:
      History of prompt uint32 [..., ceil(V / 32)] and counts uint16 [..., V], which are 0.

    Raises:
      TypeError, ValueError: tokens or lengths of a wrong type or shape, a concrete negative
        `prompt_length`, a `vocab_size` out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> history = init_history(jnp.array([3, 1, 3, -1]), vocab_size=5)
      >>> bin(history.prompt[0]), history.counts.tolist()
      ('0b1010', [0, 0, 0, 0, 0])
    """
    shape = check_array("prompt_tokens", prompt_tokens, "integer")
    if not shape:
        raise ValueError(
            "prompt_tokens must have shape [..., L], got shape (); add the axis of the tokens."
        )
    vocab_size = static_integer("vocab_size", vocab_size)
    if not 1 <= vocab_size <= MAX_VOCABULARY:
        raise ValueError(
            f"vocab_size must be in [1, {MAX_VOCABULARY}], got {vocab_size}; pass logits.shape[-1]."
        )
    batch = shape[:-1]
    length = shape[-1] if prompt_length is None else prompt_length
    check_number("prompt_length", length, batch, "integer", of="the prompt tokens")
    check_range("prompt_length", length, lambda n: n >= 0, ">= 0", "None is L")
    history: History = _init(int32(prompt_tokens), int32(length), vocabulary=vocab_size)
    return history


def update_history(history: History, tokens: ArrayLike, active: ArrayLike | None = None) -> History:
    """Count the tokens that were generated for each row of a history: one, or several at once.

    Args:
      history: of `init_history`.
      tokens: [...], integer, those that `sample` drew, or [..., K], as of `speculative_verify`. Ids
        outside [0, V), such as -1, count nothing.
      active: [] or broadcasts to [...], bool; rows where it is False count nothing. None is True.

    Returns:
      History of the same shapes; a count stays at 65535 once there.

    Raises:
      TypeError, ValueError: not a History, tokens that do not fit its batch shape, `active` that
        is not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> history = init_history(jnp.array([[3, 1], [0, 0]]), vocab_size=5)
      >>> history = update_history(history, jnp.array([4, 2]), active=jnp.array([True, False]))
      >>> history.counts.tolist()
      [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    """
    check_history(history)
    batch = history.counts.shape[:-1]
    shape = check_array("tokens", tokens, "integer")
    if shape[: len(batch)] != batch or len(shape) > len(batch) + 1:
        raise ValueError(
            f"tokens must have the batch shape {batch} of the history, or one more axis, got shape "
            f"{shape}; pass one token for each row, or as many for each."
        )
    active = True if active is None else active
    check_number("active", active, batch, "bool", of="the history")
    counts: Array = _count(history.counts, int32(tokens), active)
    return history._replace(counts=counts)


def check_history(history: Any) -> None:
    if not isinstance(history, History):
        raise TypeError(
            f"history must be a History, got {type(history).__name__}; make one with "
            "init_history(prompt_tokens, vocab_size)."
        )
    shapes = [getattr(part, "shape", ()) for part in history]
    dtypes = [getattr(part, "dtype", type(part).__name__) for part in history]
    *batch, vocabulary = shapes[1] or (0,)
    is_packed = shapes[0] == (*batch, -(-vocabulary // 32))
    if not (is_packed and dtypes == [np.uint32, np.uint16]):
        raise ValueError(
            "history must have prompt uint32 [..., ceil(V / 32)] and counts uint16 [..., V], got "
            f"{dtypes[0]} {shapes[0]} and {dtypes[1]} {shapes[1]}; make it with "
            "init_history(prompt_tokens, vocab_size)."
        )


@partial(jax.jit, static_argnames="vocabulary")
@sharded_like("tokens", 1)
def _init(tokens: Array, length: Array, *, vocabulary: int) -> History:
    batch, size = tokens.shape[:-1], tokens.shape[-1]
    wanted = jnp.arange(size, dtype=jnp.int32)[None, :] < column(length, batch)
    seen = jnp.zeros((math.prod(batch), vocabulary), bool)
    seen = seen.at[places(matrix(tokens, batch), vocabulary, wanted)].set(True, mode="drop")
    prompt = pack(seen).reshape(*batch, -(-vocabulary // 32))
    return History(prompt, jnp.zeros((*batch, vocabulary), jnp.uint16))


@jax.jit
@sharded_like("counts")
def _count(counts: Array, tokens: Array, active: Array) -> Array:
    batch, vocabulary = counts.shape[:-1], counts.shape[-1]
    rows = matrix(counts, batch)
    ids = column(tokens, batch) if tokens.ndim == len(batch) else matrix(tokens, batch)
    for start in range(0, ids.shape[1], MOST):  # of more, a count could come all the way round
        part = ids[:, start : start + MOST]
        place = places(part, vocabulary, column(active, batch))
        before = rows.at[place].get(mode="fill", fill_value=0)
        rows = rows.at[place].add(jnp.uint16(1), mode="drop")
        after = rows.at[place].get(mode="fill", fill_value=0)
        rows = rows.at[place].set(where(after < before, jnp.uint16(MOST), after), mode="drop")
    return rows.reshape(counts.shape)
