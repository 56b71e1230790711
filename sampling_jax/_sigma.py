"""A filter by the standard deviation of logits."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax import _wide
from sampling_jax._checks import LARGEST
from sampling_jax._chunks import chunk_counts, chunk_sums, to_chunks
from sampling_jax._cutoffs import apply_filter
from sampling_jax._rows import alike, fold_vmap, per_row
from sampling_jax._surprise import flat
from sampling_jax._weights import clean, divide
from sampling_jax._where import where


def apply_top_n_sigma(logits: ArrayLike, top_n_sigma: ArrayLike | None) -> Array:
    """Keep logits [..., V] within `top_n_sigma` standard deviations of the largest one.

    The deviation is that of all logits of a row that are not -inf (of the population), in steps of
    2**-16 of their range; +inf counts as the largest float32 above the rest. What is kept does
    not depend on the temperature.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf.
      top_n_sigma: [] or broadcasts to [...]. Off: None, <= 0, inf. Traced values: NaN is off.

    Returns:
      float32 [..., V], -inf for what is dropped.

    Raises:
      TypeError, ValueError: as `sample`; a concrete top_n_sigma that is NaN.

    References:
      Tang et al. 2024, https://arxiv.org/abs/2411.07641

    Example:
      >>> import jax.numpy as jnp
      >>> apply_top_n_sigma(jnp.array([5.0, 4.5, 1.0, 0.0, 0.0]), 1.0).tolist()
      [5.0, 4.5, -inf, -inf, -inf]
    """
    return apply_filter(
        _top_n_sigma,
        logits,
        "top_n_sigma",
        top_n_sigma,
        "None or 0 is off",
        lambda value: value == value,
        "a number",
    )


@fold_vmap
def _top_n_sigma(logits: Array, n: Array) -> Array:
    x = to_chunks(clean(logits))
    n, top = alike((n, jnp.max(x, axis=(1, 2, 3))))
    is_finite = x > -jnp.inf
    least = jnp.min(where(is_finite, x, jnp.inf), axis=(1, 2, 3))

    def distance(x: Array) -> Array:
        like = per_row(top, x)
        return clean(where(x == like, 0, jnp.minimum(like - x, LARGEST)))

    # A power of 2 that makes integers below 2**16 of all distances.
    exponent = (lax.bitcast_convert_type(distance(least), jnp.int32) >> 23) & 255
    factor = jnp.clip(269 - exponent, 1, 254) << 23
    factor = lax.bitcast_convert_type(factor, jnp.float32)
    steps = where(is_finite, distance(x) * per_row(factor, x), 0).astype(jnp.uint32)
    count = jnp.sum(chunk_counts(is_finite), axis=1, dtype=jnp.uint32)
    count = jnp.maximum(count, 1).astype(jnp.float32)

    def mean(values: Array) -> Array:
        # Halves of a square, each below 2**31, so that chunks add up.
        total = _wide.approximate(_wide.add_up(chunk_sums(values), axes=(1,)))
        return where(total > 0, divide(jnp.maximum(total, 1), count), 0)

    middle = mean(steps)
    square = steps * (steps >> 1), steps * (steps & 1)
    variance = (2 * mean(square[0]) + mean(square[1])) - jnp.abs(middle * middle)
    bound = jnp.abs(n * jnp.sqrt(jnp.maximum(variance, 0)))
    is_off = ~(n > 0) | (n == jnp.inf)
    keep = (steps.astype(jnp.float32) <= per_row(bound, x)) | per_row(is_off, x)
    return flat(keep & is_finite, logits.shape[1])
