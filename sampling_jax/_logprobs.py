"""Log-probabilities and ranks to report with tokens, as an API does."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax._arguments import Settings, check, check_integers, flat_ids, flat_rows
from sampling_jax._checks import int32, static_integer
from sampling_jax._chunks import chunk_counts, ids_of, to_chunks
from sampling_jax._likelihood import log_prob_at, unnormalised
from sampling_jax._meshes import sharded_like
from sampling_jax._rows import per_row
from sampling_jax._weights import clean
from sampling_jax._where import where


class Logprobs(NamedTuple):
    """What an API reports of each token: see `logprobs`."""

    logprob: Array  # float32 [...]
    rank: Array  # int32 [...]
    top_tokens: Array  # int32 [..., top]
    top_logprobs: Array  # float32 [..., top]


def logprobs(logits: ArrayLike, tokens: ArrayLike, top: int = 0) -> Logprobs:
    """Log-probabilities and ranks of tokens [...] under logits [..., V], and the `top` likeliest.

    Pass raw logits to report the model's own distribution, or `process_logits(...)` for the one
    that `sample` draws from.

    Args:
      logits: [..., V], any floating dtype; NaN counts as -inf, +inf shares all the mass.
      tokens: integer [...], the batch shape of the logits.
      top: how many of the most likely tokens to report, a Python int in [0, V].

    Returns:
      logprob: float32 [...]; -inf for a token that cannot be drawn: its logit is -inf, NaN or
        beside +inf, or it is no id, such as -1.
      rank: int32 [...], 1 for the most likely token, ties by lower id; -1 for a token that cannot
        be drawn.
      top_tokens: int32 [..., top] in that order; -1 where fewer can be drawn.
      top_logprobs: float32 [..., top]; -inf likewise.

    Raises:
      TypeError: not a floating array of logits, tokens or top that are no integers.
      ValueError: shapes that do not fit, V out of range, top outside [0, V].

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([0.1, 0.5, 0.25, 0.15]))
      >>> result = logprobs(logits, 2, top=2)
      >>> int(result.rank), result.top_tokens.tolist(), f"{jnp.exp(result.logprob):.2f}"
      (2, [1, 2], '0.25')
    """
    batch, _ = check(logits, Settings())
    check_integers("tokens", tokens, batch)
    vocabulary = jnp.shape(logits)[-1]
    top = static_integer("top", top)
    if not 0 <= top <= vocabulary:
        raise ValueError(f"top must be in [0, {vocabulary}], got {top}; there are no more tokens.")
    result: Logprobs = _logprobs(logits, int32(tokens), top=top)
    return result


@partial(jax.jit, static_argnames="top")
@sharded_like("logits", 1)
def _logprobs(logits: Array, tokens: Array, *, top: int) -> Logprobs:
    batch = logits.shape[:-1]
    x, flat = flat_rows(logits, Settings())
    rows = unnormalised(x, flat.temperature)
    ids = flat_ids(tokens, x.shape[1])[:, None]
    ranking = where(rows.mask, clean(lax.stop_gradient(x)), -jnp.inf)
    values, top_ids = lax.top_k(ranking, top)
    top_ids = where(values > -jnp.inf, top_ids, -1)
    at_ids = log_prob_at(rows, rows.mask, jnp.concatenate([ids, top_ids], axis=1))
    return Logprobs(
        at_ids[:, 0].reshape(batch),
        _rank(ranking, ids[:, 0]).reshape(batch),
        top_ids.reshape(*batch, top),
        at_ids[:, 1:].reshape(*batch, top),
    )


def _rank(ranking: Array, ids: Array) -> Array:
    """int32 [N]: the places of ids [N] in the rankings of [N, V]; -1 where that is -inf."""
    if ids.size == 0:
        return ids
    value = jnp.take_along_axis(ranking, jnp.maximum(ids, 0)[:, None], axis=1)[:, 0]
    x = to_chunks(ranking)
    bound = per_row(value, x)
    ahead = (x > bound) | ((x == bound) & (ids_of(x) < per_row(ids, x)))
    count = jnp.sum(chunk_counts(ahead), axis=1, dtype=jnp.uint32).astype(jnp.int32)
    return where((ids >= 0) & (value > -jnp.inf), count + 1, -1)
