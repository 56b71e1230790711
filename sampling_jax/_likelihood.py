"""Log-probabilities of given tokens under what `sample` draws from, to train on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax._arguments import (
    RowSettings,
    Settings,
    check,
    check_integers,
    flat_ids,
    flat_rows,
)
from sampling_jax._checks import int32
from sampling_jax._kept import kept_rows
from sampling_jax._meshes import sharded_like
from sampling_jax._weights import clean, divisor, is_greedy, over
from sampling_jax._where import where


def log_prob(
    logits: ArrayLike,
    tokens: ArrayLike,
    temperature: ArrayLike | None = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    *,
    min_p: ArrayLike | None = None,
) -> Array:
    """Log-probabilities of tokens [...] under the distribution `sample` draws from [..., V].

    Differentiable in `logits` and `temperature`; what the filters keep is a constant to the
    gradient, which is 0 where the result is -inf. Mask such tokens with `jnp.where`: 0 * -inf is
    NaN. A token less likely than 2**-31 times the most likely one, which `sample` never draws, has
    its log-probability all the same.

    Args:
      logits: [..., V], any floating dtype; NaN counts as -inf, +inf shares all the mass.
      tokens: integer [...], the batch shape of the logits.
      temperature: [] or broadcasts to [...]; a greedy row gives its most likely token 0.
      top_k: [] or broadcasts to [...], integer; off and bad traced values as in `sample`.
      top_p: [] or broadcasts to [...]; likewise.
      min_p: [] or broadcasts to [...]; likewise.

    Returns:
      float32 [...]; -inf for a token that is not kept or is no id, such as -1, and in a row with
      nothing to draw. A quotient below the range of float32 is -inf too.

    Raises:
      TypeError: tokens that are no integers, or as `sample`.
      ValueError: tokens of another shape than the batch, or as `sample`.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
      >>> [f"{jnp.exp(log_prob(logits, token, top_k=2)):.2f}" for token in range(4)]
      ['0.00', '0.00', '0.43', '0.57']
    """
    batch, settings = check(logits, Settings(temperature, top_k, top_p, min_p))
    check_integers("tokens", tokens, batch)
    result: Array = _log_prob(logits, int32(tokens), settings)
    return result


def log_kept_mass(
    logits: ArrayLike,
    temperature: ArrayLike | None = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    *,
    min_p: ArrayLike | None = None,
) -> Array:
    """The log of the probability [...] that the filters keep of logits [..., V] at a temperature.

    For a token that is kept, `log_prob` with filters plus this is `log_prob` without them.
    Differentiable in `logits` and `temperature`; what is kept is a constant to the gradient.

    Args:
      logits, temperature, top_k, top_p, min_p: as in `log_prob`.

    Returns:
      float32 [...], at most 0; 0 in a greedy row, -inf in one with nothing to draw.

    Raises:
      TypeError, ValueError: as `sample`.

    Example:
      >>> import jax.numpy as jnp
      >>> f"{jnp.exp(log_kept_mass(jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4])), top_k=2)):.2f}"
      '0.70'
    """
    _, settings = check(logits, Settings(temperature, top_k, top_p, min_p))
    result: Array = _log_kept_mass(logits, settings)
    return result


class Unnormalised(NamedTuple):
    """N rows before they are normalised: a token of `mask` weighs exp(offset / temperature)."""

    offset: Array  # float32 [N, V], logits less the largest; 0 where none can be drawn
    mask: Array  # bool [N, V], what can be drawn before the filters
    temperature: Array  # float32 [N, 1]


def unnormalised(logits: Array, temperature: Array) -> Unnormalised:
    """Of logits [N, V] and temperatures [N]; a greedy row has temperature 1."""
    x = logits.astype(jnp.float32)
    # Masks and the shift are constants to the gradient; clean would take that of a 0.
    constant = lax.stop_gradient(clean(logits))
    top = jnp.max(constant, axis=1, keepdims=True)
    shift = where(jnp.isfinite(top), top, 0)
    mask = (constant - shift > -jnp.inf) & ((constant == jnp.inf) | (top < jnp.inf))
    offset = where(mask & (constant < jnp.inf), x - shift, 0)
    return Unnormalised(offset, mask, divisor(temperature)[:, None])


def _mass(rows: Unnormalised, mask: Array) -> Array:
    """float32 [N], what the tokens of a mask weigh: at least 1 with the most likely one."""
    offset, _, temperature = rows
    # Lighter ones add exactly nothing, and the gradient of their quotients could overflow.
    near = mask & (lax.stop_gradient(over(offset, temperature)) > -128)
    weights = jnp.exp(over(where(near, offset, 0), temperature))
    return jnp.sum(where(near, weights, 0), axis=1)


def log_prob_at(rows: Unnormalised, mask: Array, ids: Array) -> Array:
    """float32 [N, n]: log-probabilities of ids [N, n] among the tokens of a mask."""
    inside = (ids >= 0) & jnp.take_along_axis(mask, jnp.maximum(ids, 0), axis=1)
    offset = jnp.take_along_axis(rows.offset, jnp.maximum(ids, 0), axis=1)
    inside = inside & (lax.stop_gradient(over(offset, rows.temperature)) > -jnp.inf)
    mass = _mass(rows, mask)[:, None]
    quotient = over(where(inside, offset, 0), rows.temperature)
    result = quotient - jnp.log(_or_one(mass))
    return where(inside, result, -jnp.inf)


def _or_one(mass: Array) -> Array:
    """1 in a row with nothing to draw: the gradient of log(0) would be NaN."""
    return where(mass > 0, mass, 1)


def _kept(logits: Array, settings: RowSettings) -> Array:
    """Bool [N, V], what temperature and filters keep: a constant to the gradient."""
    keep: Array = kept_rows(*lax.stop_gradient((logits, settings)))
    return keep


@jax.jit
@sharded_like("logits", 1)
def _log_prob(logits: Array, tokens: Array, settings: Settings) -> Array:
    if logits.size == 0:
        return jnp.zeros(logits.shape[:-1], jnp.float32)
    x, flat = flat_rows(logits, settings)
    rows = unnormalised(x, flat.temperature)
    ids = flat_ids(tokens, x.shape[1])[:, None]
    return log_prob_at(rows, rows.mask & _kept(x, flat), ids).reshape(logits.shape[:-1])


@jax.jit
@sharded_like("logits", 1)
def _log_kept_mass(logits: Array, settings: Settings) -> Array:
    if logits.size == 0:
        return jnp.zeros(logits.shape[:-1], jnp.float32)
    x, flat = flat_rows(logits, settings)
    rows = unnormalised(x, flat.temperature)
    kept = _kept(x, flat)
    mass = _mass(rows, rows.mask & kept)
    dropped = _mass(rows, rows.mask & ~kept & ~is_greedy(flat.temperature)[:, None])
    # log(mass / (mass + dropped)), to full precision also where little is dropped.
    result = -jnp.log1p(dropped / _or_one(mass))
    return where(mass > 0, result, -jnp.inf).reshape(logits.shape[:-1])
