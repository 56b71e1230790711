"""Filters that cut where a probability, or a logit, falls below a bound."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax import _wide
from sampling_jax._arguments import check_logits
from sampling_jax._checks import check_number, check_range, column, float32, is_share, rows_of
from sampling_jax._chunks import first_light
from sampling_jax._filters import share_of
from sampling_jax._meshes import sharded_like
from sampling_jax._rows import fold_vmap, per_row
from sampling_jax._surprise import Scored, flat, mean_surprise, scored
from sampling_jax._weights import Row, row_weights
from sampling_jax._where import where
from sampling_jax._wide import Wide
from sampling_jax.reference import SMALLEST_NORMAL


def apply_epsilon_cutoff(logits: ArrayLike, epsilon: ArrayLike | None) -> Array:
    """Drop the tokens of logits [..., V] less likely than `epsilon`, but never the most likely.

    Probabilities are at temperature 1, and 0 below 2**-31 of the largest, as `sample` draws: for
    another temperature apply that first, as Hugging Face does.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      epsilon: [] or broadcasts to [...], a probability. Off: None, <= 0. Traced values: above 1
        is 1, NaN is off.

    Returns:
      float32 [..., V], -inf for what is dropped.

    Raises:
      TypeError, ValueError: as `sample`; a concrete epsilon outside [0, 1].

    References:
      Hewitt et al. 2022, https://arxiv.org/abs/2210.15191

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
      >>> (apply_epsilon_cutoff(logits, 0.1) > -jnp.inf).tolist()
      [True, True, True, False]
    """
    return apply_filter(_epsilon, logits, "epsilon", epsilon, "None or 0 is off")


def apply_eta_cutoff(logits: ArrayLike, epsilon: ArrayLike | None) -> Array:
    """Drop the tokens of logits [..., V] less likely than a bound that falls with the entropy.

    The bound is `min(epsilon, sqrt(epsilon) * exp(-entropy))`; the most likely token stays.
    Probabilities are those of `apply_epsilon_cutoff`.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      epsilon: [] or broadcasts to [...], a probability. Off: None, <= 0. Traced values: above 1
        is 1, NaN is off.

    Returns:
      float32 [..., V], -inf for what is dropped.

    Raises:
      TypeError, ValueError: as `sample`; a concrete epsilon outside [0, 1].

    References:
      Hewitt et al. 2022, https://arxiv.org/abs/2210.15191

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.25, 0.25, 0.25, 0.2, 0.05]))
      >>> (apply_eta_cutoff(logits, 0.09) > -jnp.inf).tolist()
      [True, True, True, True, False]
    """
    return apply_filter(_eta, logits, "epsilon", epsilon, "None or 0 is off")


def apply_filter(
    rule: Callable[[Array, Array], Array],
    logits: ArrayLike,
    name: str,
    value: ArrayLike | None,
    cure: str,
    valid: Callable[[Any], Any] = is_share,
    expected: str = "in [0, 1]",
) -> Array:
    """Keep what a rule bool [N, V] of logits [N, V] and a number [N] keeps."""
    batch = check_logits(logits)
    if value is not None:
        check_number(name, value, batch)
        check_range(name, value, valid, expected, cure)
        value = float32(value)
    result: Array = _filter(logits, value, rule=rule)
    return result


@partial(jax.jit, static_argnames="rule")
@sharded_like("logits")
def _filter(logits: Array, value: Array | None, *, rule: Callable[[Array, Array], Array]) -> Array:
    batch = logits.shape[:-1]
    x = rows_of(logits)
    if value is not None and 0 not in batch:
        keep = rule(*lax.stop_gradient((x, column(value, batch)[:, 0])))
        x = where(keep, x, -jnp.inf)
    return x.reshape(logits.shape)


def heavy(rows: Scored, threshold: Wide) -> Array:
    """Bool, of the shape of x: the ranking up to the first that weighs less than `threshold`."""
    high, low = threshold
    # Nothing weighs 2**31.
    bound = where(high >= 2**12, jnp.uint32(2**31), _wide.narrow((high & (2**12 - 1), low)))
    light = first_light(rows.x, rows.weights, bound)
    is_top = (rows.x == per_row(rows.row.top, rows.x)) & (rows.x > -jnp.inf)
    return (rows.x > per_row(light, rows.x)) | is_top


@fold_vmap
def _epsilon(logits: Array, epsilon: Array) -> Array:
    rows, epsilon = scored(logits, epsilon)
    return flat(heavy(rows, share_of(epsilon, rows.total)), logits.shape[1])


@fold_vmap
def _eta(logits: Array, epsilon: Array) -> Array:
    rows, epsilon = scored(logits, epsilon)
    # exp(-entropy) is the chance of a token of mean surprise.
    mean = Row(jnp.zeros_like(epsilon), jnp.ones_like(epsilon))
    typical = _wide.widen(row_weights(mean, -mean_surprise(rows)))
    root = jnp.sqrt(jnp.clip(epsilon, SMALLEST_NORMAL, 1))
    by_entropy = share_of(where(epsilon >= SMALLEST_NORMAL, root, 0), typical)
    plain = share_of(epsilon, rows.total)
    threshold = _wide.select(_wide.greater(plain, by_entropy), by_entropy, plain)
    return flat(heavy(rows, threshold), logits.shape[1])
