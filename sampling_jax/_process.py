"""The distribution that `sample` draws from, as logits, and each filter on its own."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax._arguments import Settings, check, flat_rows
from sampling_jax._checks import static_bool
from sampling_jax._kept import kept_rows
from sampling_jax._meshes import sharded_like
from sampling_jax._weights import divisor, over
from sampling_jax._where import where


def process_logits(
    logits: ArrayLike,
    temperature: ArrayLike | None = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    *,
    min_p: ArrayLike | None = None,
    normalize: bool = False,
) -> Array:
    """The logits [..., V] of the distribution that `sample` draws from: `-inf` is what it drops.

    Differentiable in `logits` and `temperature`; what is kept is a constant to the gradient. Only
    filters drop: a token less likely than 2**-31 times the most likely one, which `sample` never
    draws, has its logit here.

    Args:
      logits: [..., V], any floating dtype; NaN becomes -inf. A row with +inf becomes 0 there and
        -inf elsewhere.
      temperature: [] or broadcasts to [...]; a greedy row keeps its most likely token alone, with
        its logit as it was.
      top_k: [] or broadcasts to [...], integer; off and bad traced values as in `sample`.
      top_p: [] or broadcasts to [...]; likewise.
      min_p: [] or broadcasts to [...]; likewise.
      normalize: whether to return log-probabilities, whose `exp` adds up to 1 in each row.

    Returns:
      float32 [..., V], the kept logits divided by the temperature; -inf everywhere in a row with
      nothing to draw. A row whose largest quotient would overflow is shifted first: it is 0 then.
      A quotient below the range of float32 is -inf too.

    Raises:
      TypeError, ValueError: as `sample`; a `normalize` that is no bool.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
      >>> [f"{p:.2f}" for p in jnp.exp(process_logits(logits, top_k=2, normalize=True))]
      ['0.00', '0.00', '0.43', '0.57']
    """
    _, settings = check(logits, Settings(temperature, top_k, top_p, min_p))
    result: Array = _process(logits, settings, normalize=static_bool("normalize", normalize))
    return result


def apply_temperature(logits: ArrayLike, temperature: ArrayLike) -> Array:
    """Divide logits [..., V] by a temperature; a greedy row keeps its most likely token alone.

    Args:
      logits: [..., V], any floating dtype.
      temperature: [] or broadcasts to [...]; greedy and bad traced values as in `sample`.

    Returns:
      float32 [..., V], as `process_logits(logits, temperature)`.

    Raises:
      TypeError, ValueError: as `sample`.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_temperature(jnp.array([1.0, 2.0]), 0.5).tolist()
      [2.0, 4.0]
    """
    return process_logits(logits, temperature)


def apply_top_k(logits: ArrayLike, top_k: ArrayLike) -> Array:
    """Keep exactly the `top_k` largest logits [..., V], ties by lower id; the rest become -inf.

    Args:
      logits: [..., V], any floating dtype.
      top_k: [] or broadcasts to [...], integer. Off: <= 0, >= V.

    Returns:
      float32 [..., V], as `process_logits`: one of +inf takes all the mass.

    Raises:
      TypeError, ValueError: as `sample`.

    References:
      Fan et al. 2018, https://arxiv.org/abs/1805.04833

    Example:
      >>> import jax.numpy as jnp
      >>> apply_top_k(jnp.array([1.0, 3.0, 3.0, 3.0]), 2).tolist()
      [-inf, 3.0, 3.0, -inf]
    """
    return process_logits(logits, top_k=top_k)


def apply_top_p(logits: ArrayLike, top_p: ArrayLike) -> Array:
    """Keep the fewest largest logits [..., V] with `top_p` of the mass; the rest become -inf.

    Args:
      logits: [..., V], any floating dtype.
      top_p: [] or broadcasts to [...]; the token that crosses it is kept. Off: >= 1. Traced
        values: negative is 0, NaN is off.

    Returns:
      float32 [..., V], as `process_logits`: one of +inf takes all the mass.

    Raises:
      TypeError, ValueError: as `sample`.

    References:
      Holtzman et al. 2020, https://arxiv.org/abs/1904.09751

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.125, 0.25, 0.125, 0.5]))
      >>> (apply_top_p(logits, 0.6) > -jnp.inf).tolist()
      [False, True, False, True]
    """
    return process_logits(logits, top_p=top_p)


def apply_min_p(logits: ArrayLike, min_p: ArrayLike) -> Array:
    """Keep logits [..., V] at least `min_p` times as likely as the largest; the rest become -inf.

    Args:
      logits: [..., V], any floating dtype.
      min_p: [] or broadcasts to [...]. Off: <= 0. Traced values: above 1 is 1, NaN is off.

    Returns:
      float32 [..., V], as `process_logits`: one of +inf takes all the mass.

    Raises:
      TypeError, ValueError: as `sample`.

    References:
      Nguyen et al. 2024, https://arxiv.org/abs/2407.01082

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.1, 0.3, 0.6]))
      >>> (apply_min_p(logits, 0.4) > -jnp.inf).tolist()
      [False, True, True]
    """
    return process_logits(logits, min_p=min_p)


@partial(jax.jit, static_argnames="normalize")
@sharded_like("logits")
def _process(logits: Array, settings: Settings, *, normalize: bool) -> Array:
    if 0 in logits.shape[:-1]:
        return logits.astype(jnp.float32)
    x, flat = flat_rows(logits.astype(jnp.float32), settings)
    constant, fixed = lax.stop_gradient((x, flat))
    keep = kept_rows(constant, fixed)
    infinite = keep & (x == jnp.inf)
    any_infinite = jnp.any(infinite, axis=1, keepdims=True)
    temperature = divisor(flat.temperature)[:, None]
    top = jnp.max(where(keep, constant, -jnp.inf), axis=1, keepdims=True)
    # A shift changes no probability: for precision, or where the quotients would overflow.
    shifted = (normalize | ~jnp.isfinite(top / temperature)) & jnp.isfinite(top)
    shift = where(shifted, top, 0)
    finite = keep & ~any_infinite  # what is further below the shift than float32 holds goes
    keep = infinite | (finite & (where(finite, constant, shift) - shift > -jnp.inf))
    # Zeros where nothing is kept: a gradient through -inf would be NaN.
    result = over(where(keep & ~infinite, x - shift, 0), temperature)
    if normalize:
        drawable = jnp.any(keep, axis=1, keepdims=True)
        support = where(keep | ~drawable, result, -jnp.inf)
        result = result - jax.nn.logsumexp(support, axis=1, keepdims=True)
    return where(keep, result, -jnp.inf).reshape(logits.shape)
