"""Where a search looks first: about where a prefix ends, by a sample of the logits."""

import jax.numpy as jnp
from jax import Array

from sampling_jax._bracket import Bracket, inside, missing, outline, rank, value_of
from sampling_jax._chunks import count, in_halves
from sampling_jax._locate import Weigh
from sampling_jax._where import where

SAMPLE = 128  # logits of a sample, for each row
SPREAD = 8  # how many of them a guess may well be off


def sample_of(x: Array) -> Array:
    """[N, n] of x [N, ...], at even steps."""
    flat = x.reshape(x.shape[0], -1)
    return flat[:, :: (flat.shape[1] // SAMPLE) | 1]  # odd, so that it visits all lanes


def guesses(bracket: Bracket, sample: Array, size: int, weigh: Weigh) -> Array:
    """Ranks int32 [N, 3] in a bracket: where the logits of which [N, n] are a sample, so many in
    each row, seem to reach the target, and about it.

    If that is a number with many ties, they enclose it alone. Where the sample does not tell, they
    are the ends and the middle of the bracket, which ends any search.
    """
    last = bracket.high - 1
    is_in = (sample > -jnp.inf) & (sample <= value_of(last)[:, None])
    sample = where(is_in, sample, -jnp.inf)
    weights = where(is_in, weigh(sample), 0).astype(jnp.float32)

    # As a product of matrices, which is faster than to sort.
    is_above = (sample[:, :, None] >= sample[:, None, :]).astype(jnp.float32)
    terms = where(jnp.array([True, False])[None, :, None], weights[:, None], jnp.float32(1))
    masses, counts = jnp.moveaxis(terms @ is_above, 1, 0)
    is_short = masses * (size / sample.shape[1]) < missing(bracket)[:, None]
    place = count(is_short).astype(jnp.float32)
    places = place[:, None] + jnp.array([[1 - SPREAD, 1, 1 + SPREAD]], jnp.float32)
    is_beyond = counts[:, None] >= jnp.clip(places, 1, sample.shape[1])[:, :, None]
    values = in_halves(jnp.maximum, where(is_beyond, sample[:, None], -jnp.inf), -jnp.inf, 2)
    ranks = rank(values) + jnp.array([[1, 0, 0]], jnp.int32)

    is_blind = values[:, 0] <= value_of(bracket.low)  # the highest of them tells nothing
    return where(is_blind[:, None], outline(bracket), inside(bracket, ranks))
