"""Penalties on tokens that a row has seen or generated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sampling_jax._arguments import check_logits
from sampling_jax._checks import (
    LARGEST,
    check_number,
    check_range,
    column,
    float32,
    matrix,
    rows_of,
)
from sampling_jax._history import History, check_history
from sampling_jax._masks import unpack
from sampling_jax._meshes import sharded_like
from sampling_jax._where import where
from sampling_jax.reference import SMALLEST_NORMAL


def apply_penalties(
    logits: ArrayLike,
    history: History,
    repetition_penalty: ArrayLike | None = None,
    presence_penalty: ArrayLike | None = None,
    frequency_penalty: ArrayLike | None = None,
) -> Array:
    """Penalise tokens of logits [..., V] that a row has seen, as vLLM and OpenAI do.

    First the repetition penalty, on tokens of the prompt and the output: it divides positive
    logits and multiplies the others. Then, on tokens of the output alone, `frequency_penalty`
    times their count is subtracted, and then `presence_penalty`. Infinite logits stay as they are,
    and finite ones finite.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      history: of `init_history`, with the batch shape and vocabulary of the logits.
      repetition_penalty: [] or broadcasts to [...]; below 1 it rewards. Off: None, 1, and below
        2**-126. Traced values: <= 0 or NaN is off; it counts as at most 2**126.
      presence_penalty: [] or broadcasts to [...]; negative values reward. Off: None, 0. Traced
        values: NaN is off, an infinite value is the largest float32 of its sign.
      frequency_penalty: likewise.

    Returns:
      float32 [..., V].

    Raises:
      TypeError, ValueError: as `sample`; a history that does not fit; a concrete
        `repetition_penalty` that is not > 0 and finite, another that is not finite.

    References:
      repetition: Keskar et al. 2019, https://arxiv.org/abs/1909.05858
      presence, frequency: https://platform.openai.com/docs/api-reference/chat/create

    Example:
      >>> import jax.numpy as jnp
      >>> from sampling_jax import init_history, update_history
      >>> history = update_history(init_history(jnp.array([0]), vocab_size=3), jnp.array(1))
      >>> apply_penalties(jnp.array([2.0, 2.0, 2.0]), history, 2.0, 0.5, 0.25).tolist()
      [1.0, 0.25, 2.0]
    """
    batch = check_logits(logits)
    check_history(history)
    if history.counts.shape != np.shape(logits):
        raise ValueError(
            f"history must have the shape {np.shape(logits)} of the logits, got "
            f"{history.counts.shape}; make it with init_history(prompt_tokens, logits.shape[-1])."
        )
    for name, value, off in (
        ("repetition_penalty", repetition_penalty, 1),
        ("presence_penalty", presence_penalty, 0),
        ("frequency_penalty", frequency_penalty, 0),
    ):
        if value is not None:
            check_number(name, value, batch)
            valid, expected = (_is_positive, "> 0 and finite") if off else (_is_finite, "finite")
            check_range(name, value, valid, expected, f"None or {off} is off")
    settings = (repetition_penalty, presence_penalty, frequency_penalty)
    plain = (None if value is None else float32(value) for value in settings)
    result: Array = _penalise(logits, history, *plain)
    return result


def _is_finite(value: Any) -> Any:
    return abs(value) < np.inf


def _is_positive(value: Any) -> Any:
    return (value > 0) & (value < np.inf)


@jax.jit
@sharded_like("logits")
def _penalise(
    logits: Array,
    history: History,
    repetition: Array | None,
    presence: Array | None,
    frequency: Array | None,
) -> Array:
    batch, vocabulary = logits.shape[:-1], logits.shape[-1]
    x = rows_of(logits)
    counts = matrix(history.counts, batch)
    generated = counts > 0
    finite = jnp.isfinite(x)
    result = where(finite, x, 0)
    changed = jnp.zeros(x.shape, bool)
    if repetition is not None:
        factor = column(repetition, batch)
        seen = generated | unpack(matrix(history.prompt, batch), vocabulary)
        seen = seen & (factor >= SMALLEST_NORMAL) & (factor != 1)
        # A reciprocal for each row: compilers differ in how they round a quotient for each token.
        factor = jnp.minimum(where(factor > 0, factor, 1), 1 / SMALLEST_NORMAL)
        scaled = result * where(result > 0, 1 / factor, factor)
        result = where(seen, scaled, result)
        changed = changed | seen
    if frequency is not None:
        step = _additive(frequency, batch)
        # The clip also keeps a compiler from fusing two roundings into one.
        drop = jnp.clip(step * counts.astype(jnp.float32), -LARGEST, LARGEST)
        result = where(generated, result - drop, result)
        changed = changed | (generated & (step != 0))
    if presence is not None:
        step = _additive(presence, batch)
        result = where(generated, result - step, result)
        changed = changed | (generated & (step != 0))
    # What is finite stays so: an overflow to inf would take all the mass.
    result = jnp.clip(result, -LARGEST, LARGEST)
    return where(changed & finite, result, x).reshape(logits.shape)


def _additive(penalty: Array, batch: tuple[int, ...]) -> Array:
    """Finite penalties [N, 1]; NaN is off."""
    step = column(penalty, batch)
    return jnp.clip(where(jnp.isnan(step), 0, step), -LARGEST, LARGEST)
