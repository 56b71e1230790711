"""Several tokens for each row of logits: independent ones, or all different."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings, Settings, check
from sampling_jax._bits import check_key
from sampling_jax._checks import static_bool, static_integer
from sampling_jax._chunks import chunk_sums, to_chunks
from sampling_jax._draw import draw, keep
from sampling_jax._kept import kept_rows
from sampling_jax._locate import draw_by
from sampling_jax._meshes import sharded_like
from sampling_jax._rows import alike, fold_vmap
from sampling_jax._sample import flat_draws
from sampling_jax._weights import Row, clean, row_weights, scale
from sampling_jax._where import where
from sampling_jax._wide import Wide


def sample_n(
    key: ArrayLike,
    logits: ArrayLike,
    n: int,
    temperature: ArrayLike | None = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    *,
    min_p: ArrayLike | None = None,
    replace: bool = True,
) -> Array:
    """Draw `n` token ids for each row of `logits` [..., V], as `sample` draws one.

    Without replacement, each draw is from what the draws before it left of the kept tokens,
    renormalised: the law of the `n` largest of Gumbel noise added to their log-probabilities.
    Both ways are exact in integers, and the first token is that of `sample` where n is 1.

    Stochastic beam search also needs the perturbed log-probabilities, which fall along the draws:
    `-log(cumsum(e / left))` for exponential noise `e` [..., n] and `left`, the probability of what
    was left before each draw: 1 less the sum of `exp(log_prob(...))` of the earlier ones.

    Args:
      key: a PRNG key, for the whole batch or one for each row [...], as in `sample`.
      logits: [..., V], any floating dtype, as in `sample`.
      n: how many tokens, a Python int >= 1; each number is a compilation.
      temperature, top_k, top_p, min_p: [] or broadcast to [...], as in `sample`. The filters
        apply once, before the first draw. A greedy row keeps one token.
      replace: whether a token may be drawn again, a Python bool.

    Returns:
      int32 [..., n], in the order of the draws; -1 where nothing is left: in rows with nothing to
      draw, and after the last token that can be drawn without replacement.

    Raises:
      TypeError: an n that is no integer, a replace that is no bool, or as `sample`.
      ValueError: an n below 1, or as `sample`.

    References:
      Kool et al. 2019, https://arxiv.org/abs/1903.06059

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
      >>> tokens = sample_n(jax.random.key(0), logits, 4, top_k=3, replace=False)
      >>> sorted(tokens.tolist())
      [-1, 1, 2, 3]
    """
    batch, settings = check(logits, Settings(temperature, top_k, top_p, min_p))
    n = static_integer("n", n)
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}; pass how many tokens to draw.")
    replace = static_bool("replace", replace)
    tokens: Array = _sample_n(check_key(key, batch), logits, settings, n=n, replace=replace)
    return tokens


@partial(jax.jit, static_argnames=("n", "replace"))
@sharded_like("logits", 1)
def _sample_n(key: Array, logits: Array, settings: Settings, *, n: int, replace: bool) -> Array:
    batch = logits.shape[:-1]
    if 0 in batch:
        return jnp.zeros((*batch, n), jnp.int32)
    rows = flat_draws(key, logits, settings, (n,))
    tokens = _independent(*rows) if replace else _distinct(*rows)
    return tokens.reshape(*batch, n)


@fold_vmap
def _independent(bits: Array, logits: Array, settings: RowSettings) -> Array:
    """int32 [N, n] from bits [N, n, 2], logits [N, V] and settings [N], with replacement."""
    kept = keep(logits, settings)
    tokens: Array = lax.map(lambda bits: draw(bits, kept), bits.swapaxes(0, 1))
    return tokens.T


@fold_vmap
def _distinct(bits: Array, logits: Array, settings: RowSettings) -> Array:
    """int32 [N, n] from bits [N, n, 2], logits [N, V] and settings [N], without replacement."""
    x = to_chunks(where(kept_rows(logits, settings), clean(logits), -jnp.inf))
    # What the draws carry varies over devices as the bits do, if they do.
    settings, top, _ = alike((settings, jnp.max(x, axis=(1, 2, 3)), bits[:, 0, 0]))
    weights = row_weights(Row(top, scale(settings.temperature)), x)
    weights = where(x > -jnp.inf, weights, 0)
    row = lax.iota(jnp.int32, x.shape[0])
    chunk, size = lax.iota(jnp.int32, x.shape[1])[None, :], math.prod(x.shape[2:])

    def step(
        left: tuple[Array, Wide], draw: tuple[Array, Array]
    ) -> tuple[tuple[Array, Wide], None]:
        """Ids drawn so far [N, n] and sums of the rest, after draw i of bits [N, 2]."""
        (ids, sums), (i, bits) = left, draw
        token = draw_by(bits, weights, sums, ids)
        weight = weights.reshape(ids.shape[0], -1)[row, jnp.maximum(token, 0)][:, None]
        is_drawn = (token[:, None] >= 0) & (chunk == token[:, None] // size)
        sums = _wide.subtract(sums, _wide.keep(is_drawn, _wide.widen(weight)))
        return (ids.at[:, i].set(token), sums), None

    n = bits.shape[1]
    none = jnp.broadcast_to(jnp.full_like(top, -1, jnp.int32)[:, None], bits.shape[:2])
    draws = lax.iota(jnp.int32, n), bits.swapaxes(0, 1)
    (ids, _), _ = lax.scan(step, (none, chunk_sums(weights)), draws)
    return ids
