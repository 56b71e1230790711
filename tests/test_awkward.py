"""Rows made to mislead a search: each part of one may be masked, tied, far off or strided."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import on_device
from references.process import kept_masks

from sampling_jax import reference, sample
from sampling_jax._arguments import Settings, flat_settings
from sampling_jax._kept import kept_rows

ROWS = 8


def places(rng, v):
    """Some of the ids: all, a range, those at even steps, a column of chunks, or any."""
    start, step = rng.integers(v), rng.choice([1, 2, 3, 32, 128, 161, 4096, v // 128 | 1])
    ids = np.arange(v)
    kinds = [
        lambda: ids,
        lambda: ids[start : start + int(v ** rng.random())],
        lambda: ids[start % step :: step],
        lambda: ids[ids % 128 == start % 128],
        lambda: rng.choice(v, int(v ** rng.random()), replace=False),
    ]
    return kinds[rng.integers(len(kinds))]()


def values(rng, n):
    scale = 10.0 ** rng.choice([-40, -6, -3, -1, 0, 0, 0, 1, 2, 30])
    kinds = [
        lambda: rng.normal(size=n),
        lambda: np.sort(rng.normal(size=n)) * rng.choice([-1, 1]),
        lambda: rng.choice(rng.normal(size=rng.integers(1, 9)), n),
        lambda: np.full(n, rng.choice([0.0, -0.0, -1.0, 1.0, -1e9, 3e38, -3.4e38])),
        lambda: np.full(n, rng.choice([np.inf, -np.inf, -np.inf, np.nan])),
        lambda: -np.log1p(rng.permutation(n)),
    ]
    return rng.choice([0, 0, 1, -5, 20]) + scale * kinds[rng.integers(len(kinds))]()


def awkward(rng, v):
    """float32 [ROWS, v], and settings of which most end a prefix at a place of interest."""
    x = np.empty((ROWS, v), np.float32)
    with np.errstate(all="ignore"):
        for row in x:
            row[:] = values(rng, v)
            for _ in range(rng.integers(4)):
                ids = places(rng, v)
                row[ids] = values(rng, len(ids))
    finite = np.sum(x > -np.inf, axis=1)
    top_ties = np.sum(x == np.max(x, axis=1, keepdims=True, initial=-np.inf), axis=1)
    top_k = np.choose(
        rng.integers(6, size=ROWS),
        [0, finite, top_ties, rng.integers(1, v, ROWS), finite // 2, rng.integers(1, 700, ROWS)],
    )
    settings = {
        "temperature": on_device(rng.choice([0, 0.01, 0.5, 1, 1, 1, 3, 1e9, np.inf], ROWS)),
        "top_k": jnp.asarray(np.maximum(top_k + rng.integers(-2, 3, ROWS), 0), jnp.int32),
        "top_p": on_device(rng.choice([0, 0.1, 0.5, 0.9, 0.99, 0.9999, 1, 1, 1], ROWS)),
        "min_p": on_device(rng.choice([0, 0, 0, 1e-6, 1e-3, 0.1], ROWS)),
    }
    return x, settings


@functools.partial(jax.jit, static_argnums=2)
def kept_of(x, settings, v):
    return kept_rows(x, flat_settings(Settings(**settings), (ROWS,), v))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("v", "names"),
    [
        *((v, "top_k top_p min_p") for v in (300, 5000, 20480, 33000)),
        *((33000, names) for names in ("top_k", "top_p", "top_k top_p")),
    ],
)
def test_awkward_rows(v, names):
    for seed in range(6):
        x, settings = awkward(np.random.default_rng([v, len(names), seed]), v)
        given = dict.fromkeys(settings, None) | {
            name: settings[name] for name in ["temperature", *names.split()]
        }
        key = jax.random.key(seed)
        tokens = reference.sample(key, x, **given)
        np.testing.assert_array_equal(sample(key, x, **given), tokens, f"seed {seed}")
        masks = kept_of(x, given, v)
        np.testing.assert_array_equal(masks, kept_masks(x, given), f"seed {seed}")
