"""Exclude top choices: sometimes, all likely tokens but the least likely of them are dropped."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax import _wide
from sampling_jax._arguments import check_logits
from sampling_jax._checks import check_number, check_range, column, float32, is_share, rows_of
from sampling_jax._chunks import chunk_sums, ids_of
from sampling_jax._cutoffs import heavy
from sampling_jax._filters import share_of
from sampling_jax._meshes import sharded_like
from sampling_jax._rows import fold_vmap, per_row
from sampling_jax._surprise import flat, scored
from sampling_jax._where import where
from sampling_jax.reference import HEAVIEST


def apply_xtc(
    logits: ArrayLike, xtc_threshold: ArrayLike | None, xtc_probability: ArrayLike | None
) -> Array:
    """Mix logits [..., V] with the same less their top choices, in proportion to a probability.

    Top choices are the tokens at least as likely as `xtc_threshold`; where there are two or more,
    all but the least likely of them are dropped with `xtc_probability`. A draw from the result
    has the same law as tossing that coin before each draw, and needs no key for it; so apply it
    last: a temperature or filter after it would see the mixture. What is added to the logits is
    rounded as they are, and a constant to the gradient.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      xtc_threshold: [] or broadcasts to [...], a probability; above 1/2 there are no two top
        choices. Off: None, <= 0. Traced values: NaN is off.
      xtc_probability: [] or broadcasts to [...]; 1 drops always. Off: None, <= 0. Traced values:
        above 1 is 1, NaN is off.

    Returns:
      float32 [..., V]. Not normalised: what is not dropped gains, what may be dropped loses. Where
      there are top choices of +inf, all of it is finite or -inf.

    Raises:
      TypeError, ValueError: as `sample`; a concrete value outside [0, 1].

    References:
      https://github.com/oobabooga/text-generation-webui/pull/6335

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.1, 0.1]))
      >>> [round(p, 4) for p in jax.nn.softmax(apply_xtc(logits, 0.2, 0.5)).tolist()]
      [0.25, 0.45, 0.15, 0.15]
    """
    batch = check_logits(logits)
    named = {"xtc_threshold": xtc_threshold, "xtc_probability": xtc_probability}
    for name, value in named.items():
        if value is not None:
            check_number(name, value, batch)
            check_range(name, value, is_share, "in [0, 1]", "None or 0 is off")
    plain = (None if value is None else float32(value) for value in named.values())
    result: Array = _mix(logits, *plain)
    return result


@jax.jit
@sharded_like("logits")
def _mix(logits: Array, threshold: Array | None, probability: Array | None) -> Array:
    batch = logits.shape[:-1]
    x = rows_of(logits)
    if threshold is not None and probability is not None and 0 not in batch:
        values = (column(value, batch)[:, 0] for value in (threshold, probability))
        changes = _changes(*lax.stop_gradient((x, *values)))
        # All the mass is that of +inf, to which nothing can be added.
        infinite = jnp.any((x == jnp.inf) & (changes != 0), axis=1, keepdims=True)
        x = where(infinite, where(x == jnp.inf, jnp.float32(0), -jnp.inf), x)
        x = where(changes == 0, x, where(changes == -jnp.inf, -jnp.inf, x + changes))
    return x.reshape(logits.shape)


@fold_vmap
def _changes(logits: Array, threshold: Array, probability: Array) -> Array:
    """float32 [N, V] to add to logits [N, V]."""
    rows, threshold = scored(logits, threshold)
    bound = share_of(threshold, rows.total)
    heaviest = _wide.widen(jnp.full_like(bound[0], HEAVIEST))
    is_on = _wide.is_positive(bound) & ~_wide.greater(bound, heaviest)
    is_choice = heavy(rows, bound) & per_row(is_on, rows.x)
    least = jnp.min(where(is_choice, rows.x, jnp.inf), axis=(1, 2, 3))
    is_least = is_choice & (rows.x == per_row(least, rows.x))
    ids = ids_of(rows.x)
    last = jnp.max(where(is_least, ids, -1), axis=(1, 2, 3))
    dropped = is_choice & ~(ids == per_row(last, rows.x))
    lost = _wide.add_up(chunk_sums(where(dropped, rows.weights, 0)), axes=(1,))
    left = _wide.approximate(_wide.subtract(rows.total, lost))
    probability = where(probability > 0, jnp.minimum(probability, 1), 0)
    gain = jnp.log1p(probability * (_wide.approximate(lost) / jnp.maximum(left, 1)))
    loss = jnp.log1p(-probability)
    changes = where(dropped, per_row(loss, rows.x), per_row(gain, rows.x))
    return flat(changes, logits.shape[1])
