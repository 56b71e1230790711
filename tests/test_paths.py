"""Every path of the search gives the tokens of the specification, on input that forces it."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from inputs import HOLES, make_logits, on_device
from references.process import kept_masks
from scipy.stats import norm

from sampling_jax import _settle, process_logits, reference, sample
from sampling_jax._arguments import Settings, flat_settings
from sampling_jax._bracket import Bracket, is_open, outline, pivots_of
from sampling_jax._chunks import to_chunks
from sampling_jax._guess import guesses
from sampling_jax._kept import kept_rows
from sampling_jax._tops import column_tops, lane_tops, tops_of_few
from sampling_jax._weights import clean
from sampling_jax._wide import widen

V, ROWS = 20000, 4


def levels(rng):
    """A few numbers with many ties each, as bfloat16 logits have."""
    return rng.normal(size=(ROWS, V)).astype(ml_dtypes.bfloat16).astype(np.float32)


def contiguous(rng):
    """The largest lie side by side, many in one column of a chunk."""
    return np.zeros((ROWS, 1), np.float32) - np.linspace(0, 9, V, dtype=np.float32)


def masked(rng):
    """Most are at a finite number far below, as hand-written masks put them."""
    x = 2 * rng.normal(size=(ROWS, V))
    return np.where(rng.random(x.shape) < 0.9, -1e9, x).astype(np.float32)


def unseen(rng):
    """A sample at even steps shows none of those that count."""
    x = rng.normal(size=(ROWS, V)).astype(np.float32)
    x[:, :: V // 124] = -100  # also where chunks are padded, steps are 161 = V // 124
    return x


def infinite(rng):
    """More +inf than the tops hold."""
    return np.where(rng.random((ROWS, V)) < 0.1, np.inf, rng.normal(size=(ROWS, V))).astype(
        np.float32
    )


NORMAL = 2 * norm.ppf((np.arange(V) + 0.5) / V)[::-1].astype(np.float32)
MASS = np.cumsum(np.exp(NORMAL, dtype=np.float64)) / np.sum(np.exp(NORMAL, dtype=np.float64))
DEEP = 138  # a rank that the tops of lanes do not hold where these are stacked, and columns do


def spread(rng):
    """The same normal numbers in each row, in another order."""
    return rng.permuted(np.broadcast_to(NORMAL, (ROWS, V)), axis=1)


def stacked(rng):
    """The same, of which the largest fill lane after lane, up to three in each of its columns."""
    ids = np.arange(V).reshape(-1, 32)[: V // 4096 * 128].reshape(-1, 32, 128)
    first = ids[:, :3].transpose(2, 0, 1).reshape(-1)
    rest = np.setdiff1d(np.arange(V), first)
    x = np.empty((ROWS, V), np.float32)
    for row in x:
        row[first], row[rng.permutation(rest)] = NORMAL[: len(first)], NORMAL[len(first) :]
    return x


# name of a path: logits, settings, and where each row must end: among the tops of lanes, which
# settle most searches; among those of columns, which tell what chunks weigh; or below
PATHS = {
    "lanes, top_k": (spread, {"top_k": 50}, "lanes"),
    "lanes, top_p": (spread, {"temperature": 0.3, "top_p": 0.5}, "lanes"),
    "lanes, min_p": (spread, {"min_p": 0.2}, "lanes"),
    "lanes, all three": (spread, {"top_k": 100, "top_p": 0.9, "min_p": 0.01}, "lanes"),
    "columns, top_k": (stacked, {"top_k": DEEP}, "columns"),
    "columns, top_p": (stacked, {"top_p": MASS[DEEP]}, "columns"),
    "columns, both": (stacked, {"top_k": DEEP, "top_p": 0.999}, "columns"),
    "columns, min_p": (stacked, {"min_p": np.exp(NORMAL[DEEP] - NORMAL[0])}, "columns"),
    "all, top_k": (spread, {"top_k": 9000}, "all"),
    "all, top_p": (spread, {"top_p": 0.9}, "all"),
    "all, both": (spread, {"top_k": 15000, "top_p": 0.97}, "all"),
    "all, min_p": (spread, {"min_p": 1e-5}, "all"),
    "all, all three": (spread, {"top_k": 15000, "top_p": 0.999, "min_p": 1e-4}, "all"),
    "all, side by side": (contiguous, {"top_p": 0.9}, "all"),
    "all, side by side, top_k": (contiguous, {"top_k": 700}, "all"),
    "all, levels, top_k": (levels, {"top_k": 5000}, "all"),
    "all, levels, top_p": (levels, {"top_p": 0.7}, "all"),
    "all, masked": (masked, {"top_k": 1990}, "all"),
    "all, into the mask": (masked, {"top_k": 5000, "temperature": 1e9}, "all"),
    "all, unseen, top_k": (unseen, {"top_k": 9000}, "all"),
    "all, unseen, top_p": (unseen, {"top_p": 0.9, "temperature": 3.0}, "all"),
    "all, infinite": (infinite, {"top_k": 1500}, "all"),
    "all, infinite, both": (infinite, {"top_k": 1500, "top_p": 0.5}, "all"),
    "all, infinite, all three": (infinite, {"top_k": 1500, "top_p": 0.5, "min_p": 0.5}, "all"),
    "all, beyond the infinite": (infinite, {"top_k": 9000}, "all"),
    "all, into the infinite": (infinite, {"top_p": 0.5}, "all"),
    "all, top_p into the mask": (masked, {"top_p": 0.9, "temperature": 1e9}, "all"),
}


OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def where_rows_end(x, settings):
    """Whether each row ends among the tops of lanes, of columns, or below."""
    tops = jax.jit(column_tops)(x)
    kept = [np.where(mask, x, np.inf) for x, _, _, mask in reference.rows(x, Settings(**settings))]
    end = np.min(kept, axis=1)
    below_lanes = np.where(end > tops.floor, "columns", "all")
    return np.where(end > jax.jit(lane_tops)(tops).floor, "lanes", below_lanes)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("given", ["all settings", pytest.param("its own", marks=pytest.mark.slow)])
def test_each_path(name, given):
    """Settings that are off are numbers that say so, or None, which is another program."""
    make, settings, expected = PATHS[name]
    x = make(np.random.default_rng(0))
    if given == "all settings":
        settings = OFF | settings
    assert (where_rows_end(x, settings) == expected).all()
    for seed in range(3):
        key = jax.random.key(seed)
        np.testing.assert_array_equal(
            sample(key, x, **settings), reference.sample(key, x, **settings)
        )


def test_two_numbers_with_many_ties():
    """All tokens are among the tops."""
    x = np.random.default_rng(0).permuted(
        np.repeat(np.array([1.5, 1.0], np.float32), [159, 141])[None].repeat(8, 0), axis=1
    )
    for settings in ({"top_k": 299}, {"top_p": 0.999}, {"top_k": 299, "top_p": 0.99}):
        key = jax.random.key(0)
        tokens = reference.sample(key, x, **settings)
        np.testing.assert_array_equal(sample(key, x, **OFF | settings), tokens)


def test_an_end_below_many_zeros():
    """Below 0 come ranks of subnormal numbers, which a processor may take for 0."""
    x = np.random.default_rng(0).permuted(
        np.repeat(np.array([0.0, -1.0], np.float32), [242, 58])[None].repeat(8, 0), axis=1
    )
    key = jax.random.key(0)
    for settings in ({"temperature": 3e38, "top_p": 0.9}, {"temperature": 1.0, "top_k": 290}):
        tokens = reference.sample(key, x, **settings)
        np.testing.assert_array_equal(sample(key, x, **OFF | settings), tokens)


def few_allowed():
    """A sample of every 257th logit has less above the end than it takes."""
    x = np.full((1, 32000), -np.inf, np.float32)
    x[0, 1030:1430], x[0, 5] = 0, -5
    return x


def holes():
    """A sample of every 9th logit has."""
    x = np.linspace(0.9, -3, 1000, dtype=np.float32)[None]
    x[0, ::9], x[0, 0], x[0, 1:386:128] = -np.inf, 0.5, 1
    return x


@pytest.mark.parametrize("make", [few_allowed, pytest.param(holes, marks=pytest.mark.slow)])
def test_a_search_ends_though_its_sample_shows_little(make):
    x = make()
    for settings in ({"top_k": 300}, {"temperature": 1e9, "top_p": 0.7}):
        tokens = reference.sample(jax.random.key(0), x, **settings)
        np.testing.assert_array_equal(sample(jax.random.key(0), x, **OFF | settings), tokens)


def number_kept(x, **settings):
    return np.isfinite(process_logits(x, **OFF | settings)).sum()


def test_top_k_beyond_the_last_token():
    """Fewer tokens than top_k: all are kept, whatever ties the least of them has."""
    tops = np.full((1, 300), -np.inf, np.float32)
    tops[0, :200], tops[0, 200:220] = 0, np.finfo(np.float32).min
    deep = np.full((1, V), -np.inf, np.float32)
    deep[0, ::161], deep[0, 5:518:128], deep[0, 3:5] = np.linspace(0, -1, 125), 2, -50
    flat = np.where(np.arange(V) % 32 < 3, np.float32(1.5), -np.inf)[None]
    for x, sizes in ((tops, (219, 220, 221, 225, 299)), (deep, (131, 132, 133, 9000))):
        for k in sizes:
            assert number_kept(x, top_k=k) == min(k, np.isfinite(x).sum())
    for k in (700, 1875, 1876, 5000):
        assert number_kept(flat, top_k=k) == min(k, 1875)
        assert number_kept(flat, top_k=k, top_p=0.5) == -(-min(k, 1875) // 2)


def test_every_pivot_is_news():
    """A search ends as each of its pivots lies in the bracket, also beside the rank of 0."""
    ends = [-5_000_000, -1, 0, 1, 2, 9, 8_000_000]
    pairs = np.array([(a, b) for a in ends for b in ends if a < b], np.int32)
    low, high = jnp.asarray(pairs.T)
    above, target, reached = (widen(jnp.full(len(pairs), i, jnp.uint32)) for i in range(3))
    bracket = Bracket(low, high, reached, above, target)
    closed = {(-1, 0), (0, 1), (1, 2)}
    assert {tuple(pair) for pair in pairs[~is_open(bracket)].tolist()} == closed
    x = jnp.zeros((len(pairs), 128), jnp.float32).at[::2].set(-1)
    first = jax.jit(guesses, static_argnums=(2, 3))(bracket, x, 4096, jnp.ones_like)
    for pivots in (first, outline(bracket), pivots_of(bracket)):
        is_inside = (low[:, None] < pivots) & (pivots < high[:, None])
        assert is_inside[is_open(bracket)].all()


def test_an_end_at_the_number_below_zero():
    """The tops hold 24 of the 192 logits that are equal to it, and a search passes it once."""
    x = (-1 - np.arange(V, dtype=np.float32) / V)[None]
    x[0, [128 * row + lane for row in range(32) for lane in (1, 2, 3, 5, 6, 7)]] = -(2.0**-126)
    x[0, 4096:7096] = 0
    for k in (3000, 3001, 3100, 3192, 3193):
        assert number_kept(x, top_k=k) == k


def test_no_loop_is_taken_for_a_small_one():
    """XLA's CPU compiler may make one slow function of it, as it does of JAX's random bits."""

    def small_loops(function, *arguments):
        program = jax.jit(function).lower(jax.random.key(0), *arguments).compile()
        return program.as_text().count("xla_cpu_small_call")

    of_bits = small_loops(lambda key: jax.random.bits(key, (1, 2), jnp.uint32))
    x = jnp.zeros((1, 8192), jnp.float32)
    assert small_loops(lambda key, x: sample(key, x, top_k=50), x) == of_bits


@pytest.mark.slow
def test_narrow_logits_are_not_copied():
    """Rows that end deep are taken out of them in a loop, of which a compiler may take too much."""
    x = jnp.zeros((24, V), jnp.bfloat16)
    program = jax.jit(sample).lower(jax.random.key(0), x, 1.0, None, 0.9).compile().as_text()
    whole = rf"u16\[24,{V}\]"
    assert re.search(whole, program)  # else it is written otherwise, and this tells nothing
    assert not re.search(rf"ROOT \S+ = {whole}", program)


def test_zeros_below_a_larger_logit():
    x = np.full((ROWS, V), -1, np.float32)
    x[:, :9000], x[:, 10000] = 0, 1
    for top_k in (400, 4000, 9001, 9100):
        settings = OFF | {"temperature": 5.0, "top_k": top_k}
        tokens = reference.sample(jax.random.key(0), x, **settings)
        np.testing.assert_array_equal(sample(jax.random.key(0), x, **settings), tokens)


@pytest.mark.parametrize("v", [127, pytest.param(3, marks=pytest.mark.slow)])
def test_all_but_the_last_or_all_of_few_tokens(v):
    x = -np.arange(v, dtype=np.float32)[None] / v
    mass = np.cumsum(np.exp(x[0])) / np.sum(np.exp(x[0]))
    for kept in (v - 1, v):
        top_p = mass[kept - 1] - 0.5 / v * np.exp(-1)
        assert number_kept(x, top_p=top_p) == kept


def many_rows(rng):
    """24 of them: a group that is searched at once has 6."""
    return np.concatenate([f(rng) for f in (spread, spread, levels, contiguous, spread, levels)])


@pytest.mark.parametrize(
    "rows",
    [
        "one by one",
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in ("as the device likes", "at once", "a pass at a time")
        ),
    ],
)
def test_all_paths_in_one_batch(rows, monkeypatch):
    """Rows that end among the tops and below, greedy ones and empty ones, side by side."""
    rng = np.random.default_rng(1)
    x = many_rows(rng)
    x[3] = -np.inf
    settings = {
        "temperature": on_device(rng.choice([0, 0.3, 1, 1, 1, 3], len(x))),
        "top_k": jnp.asarray(rng.choice([0, 1, 50, 200, 9000], len(x)), jnp.int32),
        "top_p": on_device(rng.choice([0.2, 0.9, 0.99, 1], len(x))),
        "min_p": on_device(rng.choice([0, 1e-4, 0.1], len(x))),
    }
    ends = where_rows_end(x[:12], jax.tree.map(lambda a: a[:12], settings))
    assert set(ends) >= {"lanes", "all"}
    if rows != "one by one":  # as where there is a TPU
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    if rows in ("at once", "a pass at a time"):  # and used
        monkeypatch.setattr(
            jax.lax, "platform_dependent", lambda *args, default, **others: default(*args)
        )
    if rows == "a pass at a time":  # some rows are told while others are still among the tops
        monkeypatch.setattr(_settle, "PASSES", 1)
    # Without a row or more, as another program.
    skipped = ["one by one", "as the device likes", "at once", "a pass at a time"].index(rows)
    x, settings = jax.tree.map(lambda a: a[skipped:], (x, settings))
    program = str(jax.make_jaxpr(sample)(jax.random.key(0), x, **settings))
    assert (" sort[" in program) == (rows in ("one by one", "as the device likes"))
    if rows != "one by one":
        assert ("platform_index" in program) == (rows == "as the device likes")
    for seed in range(3):
        key = jax.random.key(seed)
        np.testing.assert_array_equal(
            sample(key, x, **settings), reference.sample(key, x, **settings)
        )


@pytest.mark.parametrize(
    "names",
    [
        "top_k top_p min_p",
        *(pytest.param(f"top_k {o}", marks=pytest.mark.slow) for o in ("", "top_p", "min_p")),
    ],
)
@pytest.mark.parametrize("without", [5, 8])  # 6 are few
def test_a_few_rows_without_top_k(without, names):
    """What they weigh is found in groups, and of more rows before all else."""
    rng = np.random.default_rng(2)
    x, row = many_rows(rng), np.arange(24)
    x[[1, 5], 5], x[2] = np.inf, -np.inf
    settings = {
        "top_k": np.where(np.isin(row, [0, 5, 9, 12, 14, 15, 18, 21][:without]), 0, 90),
        "top_p": rng.permutation(np.repeat([0.2, 0.9, 1], 8)),
        "min_p": np.where(np.isin(row, [3, 7]), 1e-3, 0),
    }
    settings = {name: on_device(settings[name]) for name in names.split()}
    settings["temperature"] = on_device(np.ones(len(x)))
    settings["top_k"] = settings["top_k"].astype(jnp.int32)
    for seed in range(3):
        key = jax.random.key(seed)
        np.testing.assert_array_equal(
            sample(key, x, **settings), reference.sample(key, x, **settings)
        )


@pytest.mark.parametrize(
    ("v", "dtype"),
    [
        (100, np.float16),
        (8292, np.float32),
        pytest.param(1, np.float32, marks=pytest.mark.slow),
        pytest.param(4096, np.float32, marks=pytest.mark.slow),
        pytest.param(4097, ml_dtypes.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_a_batch_of_greedy_rows(v, dtype):
    for seed, holes in enumerate(HOLES):
        for spread in ("normal", "bfloat16 ties", "signed zeros", "all equal", "descending"):
            x = make_logits(seed, (3, v), spread, holes, dtype)
            key = jax.random.key(seed)
            tokens = reference.sample(key, x, temperature=0.0)
            np.testing.assert_array_equal(sample(key, x, temperature=0.0), tokens)


def tops_of_lanes(x):
    return lane_tops(column_tops(x))


def tops_of_what_is_left(x):
    return tops_of_few(to_chunks(clean(x)), tops_of_lanes(x).logits)


@pytest.mark.parametrize("v", [1, 128, 129, 512, 513, 640, 1024, 4096, 4097, 20000, 70000])
@pytest.mark.parametrize(
    ("of", "least"), [(column_tops, 100), (tops_of_lanes, 100), (tops_of_what_is_left, 80)]
)
def test_tops_hold_all_above_their_floor(v, of, least):
    x = make_logits(v, (3, v), "bfloat16 ties", "-inf")
    tops = jax.jit(of)(x)
    for row, found, floor in zip(x, np.asarray(tops.logits), np.asarray(tops.floor), strict=True):
        np.testing.assert_array_equal(
            np.sort(found[found > floor]), np.sort(row[row > floor]).astype(np.float32)
        )
        assert v < 20000 or least < np.sum(row > floor) < 3000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("v", "dtype"), [(4097, np.float32), (2 * 4096 + 4095, ml_dtypes.bfloat16)]
)
def test_a_last_chunk_that_is_not_full(v, dtype):
    """It is padded on its own, and read from within the one before it."""
    rng = np.random.default_rng(v)
    x = make_logits(v, (16, v), "normal", "all").astype(dtype)
    x[:4] = make_logits(v, (4, v), "all equal")
    x[4:8] = make_logits(v, (4, v))
    x[4:9, -1] = 40  # likelier than all else
    x[8, :-1] = np.nan
    settings = {
        "temperature": on_device(rng.choice([0, 0.7, 1, 3], 16)),
        "top_k": on_device(rng.choice([0, 1, 50, v - 3], 16), np.int32),
        "top_p": on_device(rng.choice([0.5, 0.9, 1], 16)),
        "min_p": on_device(rng.choice([0, 1e-3], 16)),
    }
    keys = jax.random.split(jax.random.key(0), 16)
    for given in (settings, {"temperature": 3.0}, {"temperature": 0.0}):
        tokens = reference.sample(keys, x, **given)
        assert v - 1 in tokens
        np.testing.assert_array_equal(sample(keys, x, **given), tokens)
    flat = flat_settings(Settings(**settings), (16,), v)
    np.testing.assert_array_equal(jax.jit(kept_rows)(x, flat), kept_masks(x, settings))
