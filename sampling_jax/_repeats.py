"""What would repeat the text so far: n-grams that may not return, and the DRY penalty."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sampling_jax._arguments import check_logits
from sampling_jax._checks import (
    LARGEST,
    at_least,
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
from sampling_jax._matches import NOTHING, match_lengths, text_of, within
from sampling_jax._meshes import sharded_like
from sampling_jax._where import where

LONGEST = 50  # the largest exponent of the DRY penalty


def apply_no_repeat_ngram(
    logits: ArrayLike, tokens: ArrayLike, length: ArrayLike, ngram_size: ArrayLike | None
) -> Array:
    """Ban the tokens of logits [..., V] that would repeat an n-gram of the text [..., L] so far.

    It costs one pass over the text for each token of the longest match, `ngram_size - 1` at most.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      tokens: [L] or [..., L], integer: prompt and output together. Ids outside [0, V), such as
        -1, equal no token and are not part of any n-gram.
      length: [] or broadcasts to [...], integer: how many tokens there are; the rest of the buffer
        is never read. Traced values: negative is 0, more than L is L.
      ngram_size: [] or broadcasts to [...], integer. 1 bans every token of the text. Off: None, 0.
        Traced values: negative is off.

    Returns:
      float32 [..., V], -inf where banned; that may be a whole row, which `sample` answers with -1.

    Raises:
      TypeError, ValueError: as `sample`; tokens of a wrong type or shape; a concrete `length`
        outside [0, L] or a negative `ngram_size`.

    References:
      Hugging Face `NoRepeatNGramLogitsProcessor`; Paulus et al. 2017,
      https://arxiv.org/abs/1705.04304

    Example:
      >>> import jax.numpy as jnp
      >>> tokens = jnp.array([0, 1, 2, 0, -1, -1])
      >>> apply_no_repeat_ngram(jnp.zeros(3), tokens, length=4, ngram_size=2).tolist()
      [0.0, -inf, 0.0]
    """
    batch = _check(logits, tokens, length)
    if ngram_size is not None:
        check_number("ngram_size", ngram_size, batch, "integer")
        check_range("ngram_size", ngram_size, at_least(0), ">= 0", "None or 0 is off")
        ngram_size = int32(ngram_size)
    result: Array = _ban(logits, int32(tokens), int32(length), ngram_size)
    return result


def apply_dry(
    logits: ArrayLike,
    tokens: ArrayLike,
    length: ArrayLike,
    multiplier: ArrayLike | None,
    base: ArrayLike = 1.75,
    allowed_length: ArrayLike = 2,
    sequence_breakers: ArrayLike | None = None,
) -> Array:
    """Penalise tokens of logits [..., V] that would prolong a repetition in the text [..., L].

    Where the last n tokens occurred before, the token that followed them loses
    `multiplier * base ** (n - allowed_length)` if n >= `allowed_length` and n >= 1; of several
    matches the longest counts. It costs one pass over the text for each token of the longest match.

    Single tokens break sequences, as in text-generation-webui (llama.cpp also takes several in a
    row). The exponent is at most 50: text-generation-webui ends matches at 50 tokens, llama.cpp
    bounds the exponent where float32 would overflow.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      tokens, length: as in `apply_no_repeat_ngram`.
      multiplier: [] or broadcasts to [...]. Off: None, 0. Traced values: negative or NaN is off.
      base: [] or broadcasts to [...]. Traced values: below 1 or NaN is off, as in llama.cpp.
      allowed_length: [] or broadcasts to [...], integer. Traced values: negative is 0.
      sequence_breakers: [S] or [..., S], integer: tokens that no match contains, and that are not
        penalised. Ids outside [0, V), such as -1, are padding. None is none.

    Returns:
      float32 [..., V].

    Raises:
      TypeError, ValueError: as `apply_no_repeat_ngram`; a concrete `multiplier` or
        `allowed_length` that is negative, a `base` below 1, any of them not finite.

    References:
      https://github.com/oobabooga/text-generation-webui/pull/5677

    Example:
      >>> import jax.numpy as jnp
      >>> tokens = jnp.array([0, 1, 2, 0, 1, -1])
      >>> apply_dry(jnp.zeros(4), tokens, length=5, multiplier=0.5).tolist()
      [0.0, 0.0, -0.5, 0.0]
    """
    batch = _check(logits, tokens, length)
    if multiplier is not None:
        check_number("multiplier", multiplier, batch)
        cure = "None or 0 is off"
        check_range("multiplier", multiplier, at_least(0), ">= 0 and finite", cure)
        multiplier = float32(multiplier)
    check_number("base", base, batch)
    check_range("base", base, at_least(1), ">= 1 and finite", "1.75 is usual")
    check_number("allowed_length", allowed_length, batch, "integer")
    check_range("allowed_length", allowed_length, at_least(0), ">= 0", "2 is usual")
    if sequence_breakers is not None:
        check_lists("sequence_breakers", sequence_breakers, batch, "S")
        sequence_breakers = int32(sequence_breakers)
    settings = (float32(base), int32(allowed_length), sequence_breakers)
    result: Array = _dry(logits, int32(tokens), int32(length), multiplier, *settings)
    return result


def _check(logits: ArrayLike, tokens: ArrayLike, length: ArrayLike) -> tuple[int, ...]:
    batch = check_logits(logits)
    check_lists("tokens", tokens, batch, "L")
    check_number("length", length, batch, "integer")
    size = np.shape(tokens)[-1]
    check_range(
        "length",
        length,
        lambda n: (n >= 0) & (n <= size),
        f"in [0, {size}]",
        "count the tokens in the buffer",
    )
    return batch


@jax.jit
@sharded_like("logits")
def _ban(logits: Array, tokens: Array, length: Array, ngram_size: Array | None) -> Array:
    x = rows_of(logits)
    if ngram_size is not None:
        batch, vocabulary = logits.shape[:-1], logits.shape[-1]
        text, end = text_of(tokens, length, batch, vocabulary)
        size = column(ngram_size, batch)
        lengths = match_lengths(text, end, size - 1)
        wanted = (size > 0) & (lengths >= size - 1) & within(text, end)
        x = x.at[places(text, vocabulary, wanted)].set(-jnp.inf, mode="drop")
    return x.reshape(logits.shape)


@jax.jit
@sharded_like("logits")
def _dry(
    logits: Array,
    tokens: Array,
    length: Array,
    multiplier: Array | None,
    base: Array,
    allowed_length: Array,
    sequence_breakers: Array | None,
) -> Array:
    x = rows_of(logits)
    if multiplier is not None:
        batch, vocabulary = logits.shape[:-1], logits.shape[-1]
        text, end = text_of(tokens, length, batch, vocabulary)
        if sequence_breakers is not None:
            breakers = matrix(sequence_breakers, batch)[:, None, :]
            text = where(jnp.any(text[:, :, None] == breakers, axis=-1), NOTHING, text)
        factor, base = column(multiplier, batch), column(base, batch)
        on = (factor > 0) & (base >= 1)
        # Beyond the text no match is that long, and 50 more do not overflow.
        allowed = jnp.clip(column(allowed_length, batch), 0, text.shape[1])
        lengths = match_lengths(text, end, where(on, allowed + LONGEST, 0))
        wanted = on & (lengths >= jnp.maximum(allowed, 1)) & within(text, end)
        place = places(text, vocabulary, wanted)
        # That of the longest match of a token: in integers, as a maximum of floats, at places that
        # occur again, has a gradient that divides 0 by 0.
        exponent = jnp.clip(lengths - allowed, 0, LONGEST).astype(jnp.uint8)
        most = jnp.zeros(x.shape, jnp.uint8).at[place].max(exponent, mode="drop")
        exponent = most.at[place].get(mode="fill", fill_value=0).astype(jnp.int32)
        power = _power(where(on, base, 1), exponent)
        penalty = jnp.minimum(where(on, factor, 0) * power, LARGEST)
        x = x.at[place].set(x.at[place].get(mode="fill", fill_value=0) - penalty, mode="drop")
    return x.reshape(logits.shape)


def _power(base: Array, exponent: Array) -> Array:
    """`base ** exponent` by squaring, for integers up to LONGEST: the same on every device."""
    result = jnp.ones_like(base)
    for bit in range(LONGEST.bit_length()):
        # 1 where it is not used, or an overflow would make the gradient NaN.
        base = where(exponent >> bit > 0, base, 1)
        result = result * where((exponent >> bit) & 1 == 1, base, 1)
        base = base * base
    return result
