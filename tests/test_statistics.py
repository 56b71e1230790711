"""Draws follow the probabilities of their logits and do not depend on each other.

Keys are fixed. A correct library fails any of this with probability FALSE_POSITIVES, shared
among all p-values, those of the slow tests too. Probabilities are float64 and computed here.
"""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from inputs import real_logits
from scipy import stats

from sampling_jax import sample

BATCH = 16
LEAST = 50  # expected in a cell: with the usual 5, counts are too skewed for so small an ALPHA
ALL = {"temperature": 1.25, "top_k": 20, "top_p": 0.8, "min_p": 0.02}
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def zipf(v=2**16):
    return -np.log(np.random.default_rng(0).permutation(v) + 1)[None].astype(np.float32)


def tail(v=2**16):
    """Four tokens share 93 %, and every other one has a probability of 1e-6."""
    p = np.full((1, v), 1e-6)
    p[0, [1_000, 20_000, 40_000, 65_000]] = np.array([0.7, 0.2, 0.09, 0.01]) * (1 - p.sum())
    return np.log(p).astype(np.float32)


def some_real():
    """A third of the vocabulary, which is drawn from three times as fast."""
    return real_logits()[:, : 2**14]


CASES = {
    "flat": (lambda: np.full((1, 2**18), 3, np.float32), {}),
    "flat bfloat16": (lambda: np.full((1, 131_072), 3, ml_dtypes.bfloat16), {}),
    "zipf": (zipf, {}),
    "tail": (tail, {}),
    "real": (some_real, {}),
    "real float16": (lambda: real_logits().astype(np.float16), {}),
    "real bfloat16": (lambda: real_logits().astype(ml_dtypes.bfloat16), {}),
    "top_k": (some_real, {**OFF, "top_k": 10}),
    "top_p": (some_real, {**OFF, "top_p": 0.8}),
    "min_p": (some_real, {**OFF, "min_p": 0.02}),
    "all": (some_real, ALL),
}
FILTERS = ("top_k", "top_p", "min_p", "all")
PAIRS = ("rows of one key", "rows with keys of their own", "steps")
FALSE_POSITIVES = 1e-4
# P-values: each at most once by default and once slow; two of test_speculative, four of test_many
# and one of test_mirostat.
TESTS = 2 * (len(CASES) + 2 * len(PAIRS)) + 7
ALPHA = FALSE_POSITIVES / TESTS
DRAWS, SLOW_DRAWS = 2**17, 2**20


@partial(jax.jit, static_argnames="steps")
def draw(key, logits, settings, steps):
    """int32 [steps, BATCH]: logits [R, V] over and over, with a key for each step."""
    x = jnp.tile(logits, (BATCH // logits.shape[0], 1))
    return jax.lax.map(
        lambda i: sample(jax.random.fold_in(key, i), x, **settings), jnp.arange(steps)
    )


def draws(seed, logits, settings, n):
    """int32 [R, n / R] of logits [R, V]."""
    tokens = draw(jax.random.key(seed), jnp.asarray(logits), settings, n // BATCH)
    return np.asarray(tokens).reshape(-1, len(logits)).T


def probabilities(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """float64 [V] of one row, by the definition of each filter."""
    x = np.asarray(logits, np.float64) / temperature
    p = np.exp(x - x.max())
    order = np.argsort(-p, kind="stable")
    p[order[top_k or p.size :]] = 0
    running = np.cumsum(p[order])
    if top_p < 1:
        p[order[np.searchsorted(running, top_p * running[-1]) + 1 :]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()


def expected_tokens(logits, settings):
    return np.array([probabilities(row, **settings) for row in logits])


def pool(expected):
    """A cell for each token: its own, or one it shares with light tokens of nearby ids."""
    light = expected < LEAST
    running = np.cumsum(np.where(light, expected, 0))
    groups = max(1, int(running[-1] / (2 * LEAST)))
    shared = (running - expected / 2) / max(running[-1], 1e-300) * groups
    cells = np.where(light, np.clip(shared, 0, groups - 1).astype(int), groups - 1)
    cells[~light] = groups + np.arange(np.count_nonzero(~light))
    if running[-1] < LEAST:
        cells[light] = cells[np.argmin(np.where(light, np.inf, expected))]
    return np.unique(cells, return_inverse=True)[1]


def chi_square(counts, p, cells=None):
    """Pearson's statistic of counts [V] against p [V], and its degrees of freedom."""
    assert counts.shape == p.shape
    assert not counts[p == 0].any(), "drew what has probability 0"
    expected = p * counts.sum()
    cells = pool(expected) if cells is None else cells
    expected, counts = np.bincount(cells, expected), np.bincount(cells, counts)
    return ((counts - expected) ** 2 / expected).sum(), expected.size - 1


def parts(counts, p):
    """The statistics that are added up for one row: of a flat one, ranges and low bits of ids."""
    if p.min() < p.max():
        return [chi_square(counts, p)]
    ids = np.arange(p.size)
    return [chi_square(counts, p, cells) for cells in (ids * 64 // p.size, ids % 64)]


def p_value(counts, p):
    """That of counts [R, V], or of nothing worse, if p [R, V] is true."""
    statistic, freedom = np.sum([part for row in zip(counts, p) for part in parts(*row)], axis=0)
    return stats.chi2.sf(statistic, freedom)


def power(p, q, n):
    """How likely n draws from q [R, V] have a p-value below ALPHA against p [R, V]."""
    rows = zip(q * n / len(p), p)
    distance, freedom = np.sum([part for row in rows for part in parts(*row)], axis=0)
    return stats.ncx2.sf(stats.chi2.isf(ALPHA, freedom), freedom, distance)


def count(tokens, v):
    return np.array([np.bincount(row, minlength=v) for row in tokens])


@pytest.mark.parametrize(
    ("case", "n"),
    [
        *((case, DRAWS) for case in ("flat", "zipf", "tail")),
        *(
            pytest.param(case, DRAWS if case in FILTERS else SLOW_DRAWS, marks=pytest.mark.slow)
            for case in CASES
        ),
    ],
)
def test_draws_follow_the_probabilities(case, n):
    """The effects that this detects are in EFFECTS; more draws detect a third of them."""
    logits, settings = CASES[case][0](), CASES[case][1]
    p = expected_tokens(logits, settings)
    tokens = draws(sorted(CASES).index(case), logits, settings, n)
    assert p_value(count(tokens, p.shape[1]), p) > ALPHA


def hotter(by):
    """The draw is at a temperature too high by this factor."""
    return lambda p: normalised(p ** (1 / by))


def normalised(q):
    return q / q.sum(axis=1, keepdims=True)


def more_low_ids(by):
    """The first id is too likely by this fraction, the last one too unlikely."""
    return lambda p: p * (1 + by * np.linspace(1, -1, p.shape[1]))


def lighter_tail(by):
    """Tokens of a probability below 1e-5 are too unlikely by this fraction."""
    return lambda p: normalised(np.where(p < 1e-5, p * (1 - by), p))


def without_crossing_token(p):
    """The last token that a filter keeps is never drawn: of ties, the one of the highest id."""
    q = p.copy()
    last = p.shape[1] - 1 - np.argmin(np.where(p > 0, p, np.inf)[:, ::-1], axis=1)
    q[np.arange(len(p)), last] = 0
    return normalised(q)


# The smallest effects that DRAWS draws detect with a probability of 0.99.
EFFECTS = {
    "flat": [more_low_ids(0.06)],
    "flat bfloat16": [more_low_ids(0.06)],
    "zipf": [hotter(1.0175), lighter_tail(0.3)],
    "tail": [hotter(1.01), lighter_tail(0.15)],
    "real": [hotter(1.02)],
    "real float16": [hotter(1.02)],
    "real bfloat16": [hotter(1.02)],
    "top_k": [hotter(1.03), without_crossing_token],
    "top_p": [hotter(1.04), without_crossing_token],
    "min_p": [hotter(1.035), without_crossing_token],
    "all": [hotter(1.04), without_crossing_token],
}


@pytest.mark.parametrize("case", CASES)
def test_effects_are_detected(case):
    logits, settings = CASES[case][0](), CASES[case][1]
    p = expected_tokens(logits, settings)
    for effect in EFFECTS[case]:
        assert power(p, effect(p), DRAWS) > 0.99


@partial(jax.jit, static_argnames=("steps", "own_keys"))
def draw_flat(seed, every, x, steps, own_keys):
    """Tokens int32 [steps, R] of logits x [R, V]; `every` steps share a key."""

    def step(i):
        key = jax.random.fold_in(jax.random.key(seed), i // every)
        return sample(jax.random.split(key, len(x)) if own_keys else key, x)

    return jax.lax.map(step, jnp.arange(steps))


def pairs(kind, n, seed=0, every=1):
    """Token pairs [n / 2, 2] of a flat row of 4096, of neighbouring rows or of steps of one row."""
    tokens = np.asarray(
        draw_flat(seed, every, np.zeros((64, 4096), np.float32), n // 64, kind == PAIRS[1])
    )
    return (tokens.T if kind == "steps" else tokens).reshape(-1, 2)


def pair_p_values(tokens):
    """Chi-square of pairs in 16 by 16 cells of ids, and correlation of ids."""
    cells = tokens // 256
    counts = np.bincount(cells[:, 0] * 16 + cells[:, 1], minlength=256)
    statistic, freedom = chi_square(counts, np.full(256, 1 / 256))
    correlation = np.corrcoef(tokens.T)[0, 1]
    z = abs(correlation) * np.sqrt(len(tokens))
    return stats.chi2.sf(statistic, freedom), 2 * stats.norm.sf(z)


@pytest.mark.parametrize("n", [DRAWS, pytest.param(SLOW_DRAWS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", PAIRS)
def test_draws_are_independent(kind, n):
    """Detects 3 pairs in 200 that repeat themselves, or a correlation of 0.03; slow: a third."""
    assert min(pair_p_values(pairs(kind, n, seed=len(kind)))) > ALPHA


def test_dependence_is_detected():
    once = np.full(256, 1 / 256)
    repeated = np.where(np.arange(256) % 17 == 0, 1 / 16, 0)
    q = 0.985 * once + 0.015 * repeated
    distance, freedom = chi_square(q * DRAWS / 2, once)
    assert stats.ncx2.sf(stats.chi2.isf(ALPHA, freedom), freedom, distance) > 0.99
    assert stats.norm.sf(stats.norm.isf(ALPHA / 2) - 0.03 * np.sqrt(DRAWS / 2)) > 0.99


def test_rejects_repeated_keys():
    assert max(pair_p_values(pairs("steps", DRAWS, every=2))) < ALPHA


def rejected(case, logits, settings):
    """Whether draws from these logits and settings are seen not to be those of the case."""
    p = expected_tokens(CASES[case][0](), CASES[case][1])
    return p_value(count(draws(0, logits, settings, DRAWS), p.shape[1]), p) < ALPHA


@pytest.mark.parametrize("case", ["zipf", pytest.param("real", marks=pytest.mark.slow)])
def test_rejects_a_temperature_2_percent_off(case):
    logits, settings = CASES[case][0](), CASES[case][1]
    assert rejected(case, logits / np.float32(1.02), settings)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["top_p", "all"])
def test_rejects_a_dropped_crossing_token(case):
    logits, settings = CASES[case][0](), CASES[case][1]
    q = without_crossing_token(expected_tokens(logits, settings))
    without = np.where(q > 0, logits, np.float32(-np.inf))
    assert rejected(case, without, {**OFF, "temperature": settings["temperature"]})


@pytest.mark.slow
def test_rejects_one_token_more():
    with pytest.raises(AssertionError, match="probability 0"):
        rejected("top_k", some_real(), {**OFF, "top_k": CASES["top_k"][1]["top_k"] + 1})


def test_rejects_coarse_noise():
    """Maxima of noise of 12 bits tie, and the lower id wins; 8 bits cannot reach every id."""
    rng = np.random.default_rng(0)
    p = np.full((1, 4096), 1 / 4096)
    ties = rng.integers(4096, size=(8192, 4096), dtype=np.uint16).argmax(axis=1)
    assert p_value(count([ties], 4096), p) < ALPHA
    unreachable = rng.integers(256, size=8192) * 16
    assert p_value(count([unreachable], 4096), p) < ALPHA
    assert p_value(count([rng.integers(4096, size=8192)], 4096), p) > ALPHA
