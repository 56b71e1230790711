"""A token for each row with its log-probability, which costs next to nothing where it is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings, Settings, check
from sampling_jax._bits import check_key
from sampling_jax._draw import Kept, draw, drawn
from sampling_jax._mass import mass
from sampling_jax._meshes import sharded_like
from sampling_jax._rows import fold_vmap, taken
from sampling_jax._sample import flat_draws
from sampling_jax._weights import clean
from sampling_jax._where import where
from sampling_jax.reference import HEAVIEST, LOG2_E


def sample_with_logprobs(
    key: ArrayLike,
    logits: ArrayLike,
    temperature: ArrayLike | None = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    *,
    min_p: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Draw one token id for each row of `logits` [..., V], with its log-probability.

    The tokens are those of `sample`. The log-probabilities are under the integer weights they are
    drawn by, filters and all: as `log_prob` gives them but for a few roundings, and V / 2**31 where
    many tokens are 2**20 times lighter than the most likely one. They carry no gradient: train on
    `log_prob`, and where a ratio has to be exactly 1, take both sides of it from one jitted
    function of the same batch: two programs may add up in two ways, which shows in the last bit.

    Args:
      key, logits, temperature, top_k, top_p, min_p: as in `sample`.

    Returns:
      tokens: int32 [...]; -1 for a row with nothing to draw.
      logprobs: float32 [...], at most 0; 0 in a greedy row, -inf in one with nothing to draw.

    Raises:
      TypeError, ValueError: as `sample`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]] * 3))
      >>> tokens, logprobs = sample_with_logprobs(jax.random.key(0), logits, top_k=2)
      >>> [(token, f"{p:.2f}") for token, p in zip(tokens.tolist(), jnp.exp(logprobs))]
      [(3, '0.57'), (2, '0.43'), (3, '0.57')]
    """
    batch, settings = check(logits, Settings(temperature, top_k, top_p, min_p))
    result: tuple[Array, Array] = _sample(check_key(key, batch), logits, settings)
    return result


@jax.jit
@sharded_like("logits", 1)
def _sample(key: Array, logits: Array, settings: Settings) -> tuple[Array, Array]:
    batch = logits.shape[:-1]
    if 0 in batch:
        return jnp.zeros(batch, jnp.int32), jnp.zeros(batch, jnp.float32)
    tokens, logprobs = _rows(*flat_draws(key, logits, settings))
    return tokens.reshape(batch), logprobs.reshape(batch)


@fold_vmap
def _rows(bits: Array, logits: Array, settings: RowSettings) -> tuple[Array, Array]:
    """int32 and float32 [N] from bits [N, 2], logits [N, V] and settings [N]."""

    def certain(token: Array) -> tuple[Array, Array]:
        return token, where(token >= 0, jnp.float32(0), -jnp.inf)

    return drawn(_draw, certain, bits, logits, settings)


def _draw(bits: Array, kept: Kept) -> tuple[Array, Array]:
    token = draw(bits, kept)
    return token, _logprob(kept, token)


def _logprob(kept: Kept, token: Array) -> Array:
    """float32 [N], of tokens drawn from what is kept."""
    logits, row, prefix, greedy = kept
    at_token = lax.iota(jnp.int32, token.shape[0]), jnp.maximum(token, 0)
    drawn = clean(taken(lambda x: x[at_token], logits))
    octaves = where(drawn == row.top, jnp.float32(0), (row.top - drawn) * row.scale)
    # As many times as heavy as its most likely token alone.
    share = _wide.approximate(mass(prefix, row)) / np.float32(HEAVIEST)
    logprob = -octaves / LOG2_E - jnp.log(jnp.maximum(share, 1))
    logprob = where(greedy, 0, logprob)
    return where(token >= 0, logprob, -jnp.inf)
