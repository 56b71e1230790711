"""Which filters are on in each row, and what they ask for, in exact integers."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from sampling_jax import _wide
from sampling_jax._arguments import RowSettings
from sampling_jax._where import where
from sampling_jax._wide import Wide
from sampling_jax.reference import HEAVIEST, SMALLEST_NORMAL


def is_filtered(settings: RowSettings) -> bool:
    """Whether there is any filter: where there is, it may be off in some rows."""
    return any(value is not None for value in (settings.top_k, settings.top_p, settings.min_p))


def filters_on(settings: RowSettings, like: Array) -> tuple[Array, Array, Array]:
    """Bool [N] each: whether top_k, top_p and min_p filter anything; `like` is any [N]."""
    off = jnp.zeros(like.shape, bool)
    top_k, top_p, min_p = settings.top_k, settings.top_p, settings.min_p
    return (
        off if top_k is None else top_k > 0,
        off if top_p is None else top_p < 1,
        off if min_p is None else min_p >= SMALLEST_NORMAL,
    )


def is_any_on(settings: RowSettings, top: Array) -> Array:
    """Bool [N]: whether anything is filtered, and there is anything: a largest logit [N]."""
    k_on, p_on, m_on = filters_on(settings, top)
    return (k_on | p_on | m_on) & (top > -jnp.inf)


def top_p_target(top_p: Array, total: Wide) -> Wide:
    """The weight that the tokens kept by top_p reach, where it is on."""
    return _wide.ceil_share(where(top_p < 1, jnp.maximum(top_p, 0), 0), total)


def min_p_threshold(min_p: Array) -> Array:
    """The least weight uint32 [N] that min_p keeps; 0 where it is off."""
    return _wide.narrow(share_of(min_p, _wide.widen(jnp.full_like(min_p, HEAVIEST, jnp.uint32))))


def share_of(p: Array, total: Wide) -> Wide:
    """`p * total` as a threshold; 0 where p is 0 or less, or NaN."""
    is_on = p >= SMALLEST_NORMAL
    # The float below 1 keeps what 1 keeps: the second heaviest weight is 2**7 less than the
    # heaviest, and nothing that is lighter than the whole is heavier than that share of it.
    share = where(is_on, jnp.minimum(p, np.float32(1 - 2**-24)), 0)
    return _wide.keep(is_on, _wide.ceil_share(share, total))
