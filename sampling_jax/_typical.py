"""Locally typical sampling: the tokens about as surprising as expected."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from sampling_jax import _wide
from sampling_jax._chunks import chunk_sums, ids_of
from sampling_jax._cutoffs import apply_filter
from sampling_jax._dive import end_of
from sampling_jax._filters import top_p_target
from sampling_jax._locate import all_above, locate
from sampling_jax._rows import fold_vmap, per_row
from sampling_jax._surprise import flat, mean_surprise, scored, surprise
from sampling_jax._weights import clean
from sampling_jax._where import where


def apply_typical_p(logits: ArrayLike, typical_p: ArrayLike | None) -> Array:
    """Keep the tokens of logits [..., V] nearest to the expected surprise, `typical_p` of the mass.

    Tokens rank by the distance of their surprise, `-log p`, to its mean, the entropy, and then by
    id; the fewest of them that add up to at least `typical_p` are kept, which need not include
    the most likely one. That is at temperature 1: for another one apply that first, as Hugging
    Face does.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      typical_p: [] or broadcasts to [...]. Off: None, >= 1. Traced values: negative is 0, NaN is
        off.

    Returns:
      float32 [..., V], -inf for what is dropped.

    Raises:
      TypeError, ValueError: as `sample`; a concrete typical_p outside [0, 1].

    References:
      Meister et al. 2022, https://arxiv.org/abs/2202.00666

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.4, 0.2, 0.2, 0.1, 0.1]))
      >>> (apply_typical_p(logits, 0.3) > -jnp.inf).tolist()
      [False, True, True, False, False]
    """
    return apply_filter(_typical_p, logits, "typical_p", typical_p, "None or 1 is off")


@fold_vmap
def _typical_p(logits: Array, p: Array) -> Array:
    rows, p = scored(logits, p)
    is_on = (p < 1) & (rows.row.top > -jnp.inf)
    distance = jnp.abs(surprise(rows) - per_row(mean_surprise(rows), rows.x))
    rank = clean(where(rows.x > -jnp.inf, -distance, -jnp.inf))
    target = top_p_target(p, rows.total)
    end, above = end_of(rank, rows.weights, target, rows.total, is_on)
    # Of those at the very end, the first by id: the two sides of the mean weigh differently.
    is_end = rank == per_row(end, rank)
    tied = where(is_end, rows.weights, 0)
    missing = _wide.subtract(target, above)
    rest = _wide.subtract(missing, _wide.widen(jnp.ones_like(end, jnp.uint32)))
    ties = all_above(jnp.zeros_like(end, jnp.uint32), chunk_sums(tied))
    last = locate(lambda weights: weights, tied.reshape(tied.shape[0], -1), ties, lambda _: rest)
    keep = (rank > per_row(end, rank)) | (is_end & (ids_of(rank) <= per_row(last, rank)))
    keep = (keep | per_row(~is_on, rank)) & (rows.x > -jnp.inf)
    return flat(keep, logits.shape[1])
