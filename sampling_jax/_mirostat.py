"""Mirostat v2: tokens whose surprise is steered to a target, step by step."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax import _wide
from sampling_jax._arguments import check_logits
from sampling_jax._bits import check_key, random_bits
from sampling_jax._checks import at_least, check_number, check_range, column, float32
from sampling_jax._chunks import chunk_sums, first_light, sums_and_counts, to_chunks
from sampling_jax._locate import End, Prefix, locate
from sampling_jax._meshes import sharded_like
from sampling_jax._rows import per_row
from sampling_jax._weights import Row, clean, plain, row_weights
from sampling_jax._where import where
from sampling_jax.reference import HEAVIEST, LOG2_E


def mirostat(
    key: ArrayLike,
    logits: ArrayLike,
    state: ArrayLike,
    tau: ArrayLike = 5.0,
    eta: ArrayLike = 0.1,
) -> tuple[Array, Array]:
    """Draw a token for each row of `logits` [..., V] that surprises by `tau` bits on average.

    Tokens with a surprise -log2(p) above `state` are dropped, all but the most likely one; of the
    rest one is drawn, and `state` moves by `eta` times the distance of its surprise to `tau`.
    Surprises are those before anything was dropped, as in the code of the paper (llama.cpp takes
    that of the drawn token after it). Apply temperature and whatever else before. The token is
    exact in integers, given the state; the new state is a float, rounded as a device rounds it.

    Args:
      key: a PRNG key, for the whole batch or one for each row [...], as in `sample`.
      logits: [..., V], any floating dtype, as in `sample`.
      state: [] or broadcasts to [...]: the largest surprise kept, in bits. Start with 2 * tau.
        Traced values: negative keeps the most likely token; NaN drops nothing, and stays NaN.
      tau: [] or broadcasts to [...], the surprise to reach, in bits.
      eta: [] or broadcasts to [...], how fast. Traced values of both are used as they are.

    Returns:
      state: float32 [...], for the next step; as it was for a row with nothing to draw.
      token: int32 [...]; -1 for a row with nothing to draw (all -inf or NaN).

    Raises:
      TypeError: not a PRNG key, not a floating array of logits, a parameter of a wrong type.
      ValueError: shapes that do not fit, V out of range, or a Python or NumPy value out of range
        (a state that is NaN, a tau or eta that is negative or not finite).

    References:
      Basu et al. 2021, https://arxiv.org/abs/2007.14966

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> logits = -1.2 * jnp.log1p(jnp.arange(1000.0))
      >>> def step(state, key):
      ...     return mirostat(key, logits, state, tau=3.0)
      >>> keys = jax.random.split(jax.random.key(0), 500)
      >>> state, tokens = jax.lax.scan(step, jnp.float32(2 * 3.0), keys)
      >>> surprises = -jax.nn.log_softmax(logits)[tokens] / jnp.log(2)
      >>> f"{surprises.mean():.1f}"
      '3.0'
    """
    batch = check_logits(logits)
    for name, value in (("state", state), ("tau", tau), ("eta", eta)):
        check_number(name, value, batch)
    check_range("state", state, lambda s: s == s, "a number", "start with 2 * tau")
    for name, value, usual in (("tau", tau, 5), ("eta", eta, 0.1)):
        check_range(name, value, at_least(0), ">= 0 and finite", f"{usual} is usual")
    numbers = (float32(state), float32(tau), float32(eta))
    result: tuple[Array, Array] = _mirostat(check_key(key, batch), logits, *numbers)
    return result


@jax.jit
@sharded_like("logits", 1)
def _mirostat(
    key: Array, logits: Array, state: Array, tau: Array, eta: Array
) -> tuple[Array, Array]:
    *shape, vocabulary = logits.shape
    batch, n = tuple(shape), math.prod(shape)
    mu, tau, eta = (column(value, batch)[:, 0] for value in (state, tau, eta))
    if n == 0:
        return mu.reshape(batch), jnp.zeros(batch, jnp.int32)
    bits = random_bits(key, batch).reshape(n, 2)
    # A token has no gradient, and asking for one through it must not fail.
    logits, mu, tau, eta = lax.stop_gradient((logits.reshape(n, vocabulary), mu, tau, eta))

    logits = plain(logits)
    x = lax.optimization_barrier(to_chunks(clean(logits)))  # or each pass cleans it again
    top = jnp.max(x, axis=(1, 2, 3))
    row = Row(top, jnp.full_like(top, LOG2_E))
    weights = row_weights(row, x)
    total = _wide.add_up(chunk_sums(weights), axes=(1,))
    light = first_light(x, weights, _threshold(mu, total))
    end = End(light, ((light == top) & (top > -jnp.inf)).astype(jnp.uint32))
    bound = per_row(end.value, x)
    prefix = Prefix(end, *sums_and_counts(where(x > bound, weights, 0), x == bound))
    token = locate(partial(row_weights, row), logits, prefix, partial(_wide.fraction, bits))

    is_any = top > -jnp.inf
    token = where(is_any, token, -1)
    drawn = x.reshape(n, -1)[lax.iota(jnp.int32, n), jnp.maximum(token, 0)]
    below = where(drawn == top, jnp.float32(0), (top - drawn) * LOG2_E)
    surprise = jnp.log2(_wide.approximate(total)) - 31 + below
    mu = where(is_any, mu - eta * (surprise - tau), mu)
    return mu.reshape(batch), token.reshape(batch)


def _threshold(mu: Array, total: _wide.Wide) -> Array:
    """uint32 [N]: the least weight of a token whose surprise is at most mu, or HEAVIEST + 1."""
    # 2**-mu as the weights have it, for its bits to be the same everywhere.
    unit = Row(jnp.zeros_like(mu), jnp.ones_like(mu))
    power = row_weights(unit, -jnp.maximum(mu, 0)).astype(jnp.float32) * 2**-31
    least = _wide.ceil_share(power, total)
    too_heavy = _wide.widen(jnp.full_like(least[0], HEAVIEST + 1))
    return _wide.narrow(_wide.select(_wide.greater(least, too_heavy), too_heavy, least))
