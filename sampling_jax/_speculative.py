"""Speculative decoding: which drafted tokens the target model accepts, and the token after them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sampling_jax import _wide
from sampling_jax._arguments import (
    Settings,
    check_integers,
    check_logits,
    check_settings,
    flat_ids,
    flat_settings,
)
from sampling_jax._bits import check_key, random_bits
from sampling_jax._checks import check_number, check_range, int32
from sampling_jax._chunks import chunk_sums, ids_of, to_chunks
from sampling_jax._locate import draw_by
from sampling_jax._meshes import sharded_like
from sampling_jax._probability import (
    Distribution,
    distribution_of,
    kept_weights,
    probability,
    probability_of,
)
from sampling_jax._rows import per_row, rows_at
from sampling_jax._weights import clean
from sampling_jax._where import where


class Verified(NamedTuple):
    """What a step of speculative decoding gives: see `speculative_verify`."""

    tokens: Array  # int32 [..., K + 1]
    accepted: Array  # int32 [...]


def speculative_verify(
    key: ArrayLike,
    draft_tokens: ArrayLike,
    draft_logits: ArrayLike,
    target_logits: ArrayLike,
    temperature: ArrayLike | None = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    *,
    min_p: ArrayLike | None = None,
    draft_length: ArrayLike | None = None,
) -> Verified:
    """Accept a prefix of draft tokens [..., K] and draw one more, as the target [..., K + 1, V].

    Each draft token x is accepted with probability min(1, p(x) / q(x)), for p of the target and q
    of the draft, both after the same settings. The first one rejected is replaced by a draw from
    max(0, p - q), and after the last one accepted comes a draw from p. So if the draft tokens are
    drawn from q, by `sample` with these settings, the tokens are distributed as the target's.

    Every step is exact in integers, once p and q are multiples of about 2**-30: the total variation
    to the target's distribution is below V * 2**-29 + 2**-20. What rounds to 0 counts as 0.

    Args:
      key: a PRNG key, for the whole batch or one for each row [...], as in `sample`; another one
        than the draft tokens were drawn with.
      draft_tokens: integer [..., K], K >= 1; what is no id, such as -1, is rejected.
      draft_logits: [..., K, V], any floating dtype: what each draft token was drawn from; for a
        draft of no model, as of the prompt's n-grams, `jnp.log(jax.nn.one_hot(draft_tokens, V))`.
      target_logits: [..., K + 1, V], any floating dtype: the target's before each draft token,
        and after the last one.
      temperature, top_k, top_p, min_p: [] or broadcast to [...], as in `sample`; greedy rows
        accept what the target's most likely tokens agree with. Where draft and target have settings
        of their own, pass both through `process_logits` instead.
      draft_length: [] or broadcasts to [...], integer, how many draft tokens a row has; the rest is
        ignored. None is K. Traced values: below 0 is 0, above K is K.

    Returns:
      tokens: int32 [..., K + 1], the accepted draft tokens, one token more, and then -1. That one
        is -1 too where the target has nothing to draw.
      accepted: int32 [...], how many draft tokens were accepted.

    Raises:
      TypeError: draft tokens or lengths that are no integers, or as `sample`.
      ValueError: shapes that do not fit, a Python or NumPy length outside [0, K], or as `sample`.

    References:
      Leviathan et al. 2023, https://arxiv.org/abs/2211.17192
      Chen et al. 2023, https://arxiv.org/abs/2302.01318

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> target = 9 * jax.nn.one_hot(jnp.array([5, 1, 4]), 8)
      >>> draft = 9 * jax.nn.one_hot(jnp.array([5, 2]), 8)
      >>> result = speculative_verify(jax.random.key(0), jnp.array([5, 2]), draft, target, 0.0)
      >>> result.tokens.tolist(), int(result.accepted)
      ([5, 1, -1], 1)
    """
    *batch, drafts, vocabulary = _check_shapes(draft_tokens, draft_logits, target_logits)
    shape = tuple(batch)
    settings = check_settings(Settings(temperature, top_k, top_p, min_p), shape, vocabulary)
    length = _check_length(draft_length, shape, drafts)
    keys = check_key(key, shape)
    ids = int32(draft_tokens)
    result: Verified = _verify(keys, ids, draft_logits, target_logits, settings, length)
    return result


def _check_shapes(tokens: Any, draft_logits: Any, target_logits: Any) -> tuple[int, ...]:
    """Raise unless the three fit; the shape [..., K, V]."""
    check_logits(target_logits, "target_logits")
    check_logits(draft_logits, "draft_logits")
    shape = tuple(target_logits.shape)
    if len(shape) < 2 or shape[-2] < 2:
        raise ValueError(
            f"target_logits must have shape [..., K + 1, V] for K >= 1 drafts, got shape {shape}; "
            "without a draft, call sample."
        )
    shape = (*shape[:-2], shape[-2] - 1, shape[-1])
    if tuple(draft_logits.shape) != shape:
        raise ValueError(
            f"draft_logits must have shape {shape}, a position less than the target_logits, got "
            f"shape {tuple(draft_logits.shape)}; pass those that each draft token was drawn from."
        )
    check_integers("draft_tokens", tokens, shape[:-1])
    return shape


def _check_length(length: Any, batch: tuple[int, ...], drafts: int) -> Any:
    """Raise unless there are so many drafts; None is all of them."""
    if length is None:
        return None
    check_number("draft_length", length, batch, "integer")
    check_range(
        "draft_length",
        length,
        lambda n: (n >= 0) & (n <= drafts),
        f"in [0, {drafts}]",
        "None is all",
    )
    return int32(length)


@jax.jit
@sharded_like("target_logits", 2)
def _verify(
    key: Array,
    draft_tokens: Array,
    draft_logits: Array,
    target_logits: Array,
    settings: Settings,
    length: Array | None,
) -> Verified:
    *shape, drafts, vocabulary = draft_logits.shape
    batch, n = tuple(shape), math.prod(shape)
    if n == 0:
        return Verified(jnp.zeros((*batch, drafts + 1), jnp.int32), jnp.zeros(batch, jnp.int32))
    bits = random_bits(key, batch, (drafts + 1,)).reshape(n, drafts + 1, 2)
    rows = flat_settings(settings, batch, vocabulary)
    draft = distribution_of(draft_logits.reshape(n, drafts, vocabulary), rows)
    target = distribution_of(target_logits.reshape(n, drafts + 1, vocabulary), rows)
    ids = flat_ids(draft_tokens, vocabulary).reshape(n, drafts)
    length = jnp.asarray(drafts if length is None else length, jnp.int32)
    length = jnp.broadcast_to(jnp.clip(length, 0, drafts), batch).reshape(n)

    position = lax.iota(jnp.int32, drafts + 1)[None, :]
    padded = jnp.pad(ids, ((0, 0), (0, 1)), constant_values=-1)
    p, q = probability_of(target, padded)[:, :-1], probability_of(draft, ids)
    threshold = _wide.narrow(_wide.fraction(bits[:, :-1], _wide.widen(q)))
    is_accepted = (threshold < p) & (position[:, :-1] < length[:, None])
    accepted = jnp.min(where(is_accepted, drafts, position[:, :-1]), axis=1)

    last = _last_token(target, draft, accepted, length, bits[:, -1])
    tokens = where(position == accepted[:, None], last[:, None], -1)
    tokens = where(position < accepted[:, None], padded, tokens)
    return Verified(tokens.reshape(*batch, drafts + 1), accepted.reshape(batch))


def _last_token(
    target: Distribution, draft: Distribution, accepted: Array, length: Array, bits: Array
) -> Array:
    """int32 [N], the token after the accepted ones [N], of drafts up to `length` [N]."""
    positions = target.unit.shape[0] // length.shape[0]
    row = lax.iota(jnp.int32, length.shape[0])
    p_index = row * positions + accepted
    q_index = row * (positions - 1) + jnp.minimum(accepted, positions - 2)

    def weighed_at(index: Array, rows: Distribution) -> tuple[Distribution, Array]:
        rows = rows_at(index, rows)
        x = to_chunks(clean(rows.logits))
        return rows, kept_weights(rows, x, ids_of(x))

    def of_both() -> Array:
        q = probability(*weighed_at(q_index, draft))
        rows, weights = weighed_at(p_index, target)
        p = probability(rows, weights)
        # Where rounding leaves nothing of p - q, or there was no draft to reject, p itself.
        is_residual = (accepted < length) & jnp.any(p > q, axis=(1, 2, 3))
        return where(per_row(is_residual, p), where(p > q, p - q, 0), weights)

    # A branch also keeps a compiler from taking the rows again in each step of the draw.
    is_any_rejected = jnp.any(accepted < length)
    weights: Array = lax.cond(is_any_rejected, of_both, lambda: weighed_at(p_index, target)[1])
    return draw_by(bits, weights, chunk_sums(weights))
