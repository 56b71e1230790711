"""One token for each row of logits."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax._arguments import RowSettings, Settings, check, flat_rows
from sampling_jax._bits import check_key, random_bits
from sampling_jax._draw import draw, drawn
from sampling_jax._meshes import sharded_like
from sampling_jax._rows import fold_vmap


def sample(
    key: ArrayLike,
    logits: ArrayLike,
    temperature: ArrayLike | None = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    *,
    min_p: ArrayLike | None = None,
) -> Array:
    """Draw one token id for each row of `logits` [..., V], after temperature and three filters.

    The filters apply in the order temperature, top_k, top_p, min_p, each to what the one before
    it left, renormalised. Tokens rank by logit descending, then by id ascending, and every filter
    keeps a prefix of that ranking: `top_k=1`, `top_p=0`, `temperature=0`, `argmax`, and
    `min_p=1` where no other token is as likely, are one and the same token.

    The result is exact: it equals `sampling_jax.reference.sample` token for token, whether jitted
    or not, alone or in a batch, under vmap, padded with -inf, sharded, and on any device. Nothing
    is recompiled for a new value of any parameter; only None against a value is another program.

    Args:
      key: a PRNG key, typed or legacy; shape [] draws for the whole batch, shape [...] has a key
        for each row, whose token then does not depend on the rest of the batch (under your own
        vmap, JAX gives that for threefry keys, its default, and not for rbg keys). The key is
        consumed: do not use it again.
      logits: [..., V], any floating dtype, 1 <= V <= 2**20; computed in float32. -inf and NaN
        are never drawn; +inf takes all the mass, shared among all +inf. Subnormal float32 numbers
        count as 0.
      temperature: [] or broadcasts to [...], divides the logits. 0, and anything up to 2**-64,
        is greedy: the most likely token. None is 1. Traced values: negative or NaN is greedy,
        inf is uniform (among logits whose distance to the largest is finite in float32).
      top_k: [] or broadcasts to [...], integer, keeps the `top_k` most likely tokens exactly;
        ties go to the lower id. Off: None, <= 0, >= V.
      top_p: [] or broadcasts to [...], keeps the fewest most likely tokens whose probabilities
        add up to at least `top_p`, the token that crosses it included. Off: None, >= 1. Traced
        values: negative is 0, NaN is off.
      min_p: [] or broadcasts to [...], keeps the tokens at least `min_p` times as likely as the
        most likely one. Off: None, <= 0. Traced values: above 1 is 1, NaN is off.

    Returns:
      int32 [...], a token id for each row; -1 for a row with nothing to draw (all -inf or NaN).

    Raises:
      TypeError: not a PRNG key, not a floating array of logits, a parameter of a wrong type.
      ValueError: shapes that do not fit, V out of range, or a Python or NumPy value out of range
        (a negative or NaN temperature, a top_p or min_p outside [0, 1]). Values of JAX arrays,
        traced or not, are never inspected and have the results above instead.

    References:
      top_k: Fan et al. 2018, https://arxiv.org/abs/1805.04833
      top_p: Holtzman et al. 2020, https://arxiv.org/abs/1904.09751
      min_p: Nguyen et al. 2024, https://arxiv.org/abs/2407.01082

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]] * 3))
      >>> key = jax.random.key(0)
      >>> tokens = sample(key, logits, temperature=jnp.array([0.0, 0.7, 1.5]), top_k=3, top_p=0.9)
      >>> tokens.shape, tokens.dtype, int(tokens[0])
      ((3,), dtype('int32'), 3)
    """
    batch, settings = check(logits, Settings(temperature, top_k, top_p, min_p))
    tokens: Array = _sample(check_key(key, batch), logits, settings)
    return tokens


@jax.jit
@sharded_like("logits", 1)
def _sample(key: Array, logits: Array, settings: Settings) -> Array:
    batch = logits.shape[:-1]
    if 0 in batch:
        return jnp.zeros(batch, jnp.int32)
    return _sample_rows(*flat_draws(key, logits, settings)).reshape(batch)


def flat_draws(
    key: Array, logits: Array, settings: Settings, each: tuple[int, ...] = ()
) -> tuple[Array, Array, RowSettings]:
    """Bits uint32 [N, *each, 2], logits [N, V] and settings [N]."""
    batch = logits.shape[:-1]
    bits = random_bits(key, batch, each).reshape(math.prod(batch), *each, 2)
    # A token has no gradient, and asking for one through it must not fail.
    result: tuple[Array, Array, RowSettings]
    result = lax.stop_gradient((bits, *flat_rows(logits, settings)))
    return result


@fold_vmap
def _sample_rows(bits: Array, logits: Array, settings: RowSettings) -> Array:
    """int32 [N] from bits [N, 2], logits [N, V] and settings [N]."""
    return drawn(draw, lambda tokens: tokens, bits, logits, settings)
