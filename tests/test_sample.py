"""`sample` equals its specification token for token, however it is called."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import (
    DTYPES,
    HOLES,
    MIN_PS,
    SPREADS,
    STRUCTURES,
    TEMPERATURES,
    TOP_PS,
    count_compilations,
    keys,
    logits_of,
    make_logits,
    make_settings,
    on_device,
    real_logits,
    seeds,
    top_ks,
)

from sampling_jax import process_logits, reference, sample

# A shape is a compilation, so there are few; -inf padding varies the effective vocabulary.
SHAPES = [(7,), (5, 129), (2, 3, 5000)]

QUICK = [(), ("top_k",), ("top_p",), ("min_p",), ("top_k", "top_p")]  # of STRUCTURES


def assert_equals_reference(key, x, settings):
    tokens = np.asarray(sample(key, x, **settings))
    assert (tokens.dtype, tokens.shape) == (np.int32, x.shape[:-1])
    np.testing.assert_array_equal(tokens, reference.sample(key, x, **settings))
    return tokens


@given(keys, logits_of(*SHAPES), seeds)
def test_equals_reference(key, x, seed):
    assert_equals_reference(key, x, make_settings(seed, x.shape[:-1], x.shape[-1]))


@pytest.mark.parametrize(
    "structure",
    [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in STRUCTURES],
    ids="+".join,
)
def test_every_structure_of_settings(structure):
    for seed, (spread, holes) in enumerate(zip(sorted(SPREADS), sorted(HOLES) * 2, strict=False)):
        x = make_logits(seed, (6, 300), spread, holes)
        settings = make_settings(seed, (6,), 300, structure)
        assert_equals_reference(jax.random.key(seed), x, settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("v", "dtype"),
    [(2049, DTYPES[1]), (2049, DTYPES[2]), (1, DTYPES[0])],
)
def test_every_dtype(v, dtype):
    for seed, (spread, holes) in enumerate(zip(sorted(SPREADS), sorted(HOLES) * 2, strict=False)):
        x = make_logits(seed, (6, v), spread, holes, dtype)
        assert_equals_reference(jax.random.key(seed), x, make_settings(seed, (6,), v))


@given(
    keys,
    seeds,
    st.sampled_from(sorted(SPREADS)),
    st.sampled_from(TEMPERATURES),
    st.integers(0, 8),
    st.sampled_from(TOP_PS),
    st.sampled_from(MIN_PS),
)
def test_scalars_equal_reference(key, seed, spread, temperature, k, p, min_p):
    x = make_logits(seed, (3, 300), spread)
    settings = {
        "temperature": on_device(temperature),
        "top_k": top_ks(300)[k],
        "top_p": on_device(p),
        "min_p": on_device(min_p),
    }
    assert_equals_reference(key, x, settings)


@pytest.mark.parametrize(
    ("v", "dtype"),
    [pytest.param(50257, DTYPES[1], marks=pytest.mark.slow), (131072, DTYPES[2])],
)
def test_large_vocabularies(v, dtype):
    for seed, spread in enumerate(["normal", "zipf", "two levels", "all equal"]):
        x = make_logits(seed, (6, v), spread, dtype=dtype)
        assert_equals_reference(jax.random.key(seed), x, make_settings(seed, (6,), v))


@pytest.mark.slow
def test_largest_vocabulary():
    v = 2**20
    x = np.stack([make_logits(0, (v,), spread) for spread in ("all equal", "normal", "zipf")])
    for settings in ({}, {"top_p": 0.9}, {"top_k": 2**19 + 1}):
        assert_equals_reference(jax.random.key(1), x, settings)


@pytest.mark.slow
@pytest.mark.parametrize("v", [300, 9000])
def test_many_rows_of_every_kind(v):
    """Searches go astray on one row in thousands, where many logits are equal or nearly so."""
    for seed in range(36_000 // v + 100):
        rng = np.random.default_rng(seed)
        x = make_logits(seed, (64, v), *(rng.choice(sorted(kinds)) for kinds in (SPREADS, HOLES)))
        settings = make_settings(seed, (64,), v)
        if seed % 2:
            settings |= {
                "temperature": on_device(rng.choice([0.3, 1.0, 3.0], 64)),
                "top_k": on_device(rng.integers(1, v, 64), np.int32),
                "top_p": on_device(rng.random(64)),
            }
        assert_equals_reference(jax.random.key(seed), x, settings)


@pytest.mark.slow
def test_ten_thousand_rows():
    """Every kind of row and setting mixed in one jitted batch."""
    shape = (10_000, 600)
    rng = np.random.default_rng(0)
    kinds = [
        make_logits(seed, shape, spread, holes)
        for seed, (spread, holes) in enumerate(
            zip(sorted(SPREADS), sorted(HOLES) * 2, strict=False)
        )
    ]
    x = np.stack(kinds)[rng.integers(len(kinds), size=shape[0]), np.arange(shape[0])]
    settings = make_settings(0, shape[:1], shape[1])
    assert_equals_reference(jax.random.key(0), x, settings)


def test_real_logits():
    x = real_logits()
    for seed in range(8):
        settings = make_settings(seed, (8,), x.shape[-1])
        settings["temperature"] = jnp.full(8, 0.8)
        assert_equals_reference(jax.random.key(seed), x, settings)


def call(keys, x, settings):
    return sample(keys, x, **settings)


nested = jax.jit(jax.vmap(jax.vmap(call)))


@pytest.mark.slow
@given(keys, seeds, st.sampled_from(sorted(SPREADS)), st.sampled_from(sorted(HOLES)))
@jax.debug_nans(False)  # NaN settings are sliced here, which is no business of the library
def test_one_token_however_it_is_called(key, seed, spread, holes):
    """Alone, vmapped, permuted, padded, by legacy keys: one and the same token."""
    n, v = 6, 5000
    x = make_logits(seed, (n, v), spread, holes)
    row_keys = jax.random.split(key, n)
    settings = make_settings(seed, (n,), v)
    expected = np.asarray(sample(row_keys, x, **settings))
    square = jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), (row_keys, x, settings))
    np.testing.assert_array_equal(nested(*square).reshape(n), expected)
    legacy = jax.random.key_data(row_keys)
    np.testing.assert_array_equal(sample(legacy, x, **settings), expected)
    for i in range(min(n, 3)):
        alone = {name: value[i] for name, value in settings.items()}
        assert sample(row_keys[i], x[i], **alone) == expected[i]
    order = np.random.default_rng(seed).permutation(n)
    shuffled = {name: value[order] for name, value in settings.items()}
    np.testing.assert_array_equal(sample(row_keys[order], x[order], **shuffled), expected[order])
    # A top_k that keeps all means the same in the longer row, but V itself is another number.
    padded = np.concatenate([x, np.full((n, 11), -np.inf, x.dtype)], axis=1)
    np.testing.assert_array_equal(sample(row_keys, padded, **settings), expected)


small = st.builds(
    make_logits,
    seeds,
    st.just((5, 129)),
    st.sampled_from(sorted(SPREADS)),
    st.sampled_from(sorted(HOLES)),
)
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@given(small, keys)
def test_most_likely_token_six_ways(x, key):
    x = np.where(np.isnan(x), -np.inf, x).astype(np.float32)
    x = np.where(np.abs(x) < 2.0**-126, 0, x).astype(np.float32)
    largest = np.where(x.max(-1) > -np.inf, np.argmax(x, -1), -1)
    for settings in (
        {"temperature": 0.0},
        {"temperature": 0.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
        {"top_k": 1},
        {"top_p": 0.0},
        {"top_p": 1e-9},
        {"temperature": 1e30, "top_k": 1},
    ):
        np.testing.assert_array_equal(sample(key, x, **OFF | settings), largest)


@given(keys, small)
def test_off_changes_nothing(key, x):
    v = x.shape[-1]
    plain = np.asarray(sample(key, x))
    for off in (
        *({"top_k": k} for k in (0, -1, -(2**40), v, v + 1, 2**40)),
        *({"top_p": on_device(p)} for p in (1.0, 1.5, np.inf, np.nan)),
        *({"min_p": on_device(p)} for p in (0.0, -1.0, -np.inf, np.nan)),
        {"temperature": None, "top_k": None, "top_p": None, "min_p": None},
    ):
        np.testing.assert_array_equal(sample(key, x, **OFF | off), plain)


@given(keys, seeds, st.integers(-3, 3))
def test_adding_a_constant_changes_nothing_where_it_is_exact(key, seed, shift):
    x = np.round(make_logits(seed, (5, 129)) * 256) / 256
    settings = make_settings(seed, (5,), 129)
    moved = (x + np.float32(shift)).astype(np.float32)
    np.testing.assert_array_equal(sample(key, moved, **settings), sample(key, x, **settings))


def test_bad_traced_values_have_documented_results():
    x, key = make_logits(0, (2, 3, 5000)), jax.random.key(0)
    nan = np.nan
    bad = {
        "temperature": [-1, nan, 1, 1, 1, 1, 1, 1, -np.inf, np.inf],
        "top_k": [9, 9, -9, 5000, 5001, 0, 0, 0, 0, 0],
        "top_p": [1, 1, 1, 1, 1, -1, nan, 2, 1, 1],
        "min_p": [0, 0, 0, 0, nan, -1, 2, 0, 0, 0],
    }
    good = {
        "temperature": [0, 0, 1, 1, 1, 1, 1, 1, 0, 3e38],
        "top_k": [9, 9, 0, 0, 0, 0, 0, 0, 0, 0],
        "top_p": [1, 1, 1, 1, 1, 0, 1, 1, 1, 1],
        "min_p": [0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    }
    dtypes = {"temperature": "float32", "top_k": "int32", "top_p": "float32", "min_p": "float32"}
    for rows in (slice(6), slice(4, 10)):  # as many as a program that is there already takes
        bad_ones, good_ones = (
            {
                name: on_device(np.reshape(values[rows], (2, 3)), dtypes[name])
                for name, values in settings.items()
            }
            for settings in (bad, good)
        )
        np.testing.assert_array_equal(sample(key, x, **bad_ones), sample(key, x, **good_ones))


@pytest.mark.slow
def test_settings_broadcast_over_the_batch():
    x = make_logits(0, (2, 3, 129))
    key = jax.random.key(0)
    for shape in ((2, 1),):
        t = np.linspace(0.0, 2.0, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        full = np.broadcast_to(t, (2, 3))
        np.testing.assert_array_equal(
            sample(key, x, t, t.astype(int) + 3), sample(key, x, full, full.astype(int) + 3)
        )


@pytest.mark.slow
def test_integer_settings_of_every_width():
    x = make_logits(0, (5, 129))
    key = jax.random.key(0)
    expected = sample(key, x, 1.0, 50)
    for dtype in (np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64):
        np.testing.assert_array_equal(sample(key, x, 1.0, dtype(50)), expected)
    for dtype in (jnp.uint8, jnp.uint32):
        np.testing.assert_array_equal(sample(key, x, 1.0, jnp.full((), 50, dtype)), expected)


def test_new_values_do_not_recompile():
    x = jnp.asarray(make_logits(0, (4, 129)))
    key = jax.random.key(0)
    step = jax.jit(sample)
    kinds = (0, 1, np.float64(0.3), np.int64(2), np.float32(1), jnp.float32(0.7))
    step(key, x, 0.5, 3, 0.5)
    sample(key, x, 0.5, 3, 0.5)
    compilations = count_compilations()
    for temperature in kinds:
        sample(key, x, temperature, 3, 0.5)
    for i in range(50):
        temperature, k, p = 0.1 + i / 10, i + 1, (i + 1) / 51
        tokens = sample(key, x, temperature, k, p)
        np.testing.assert_array_equal(step(key, x, temperature, k, p), tokens)
    assert not compilations


@pytest.mark.slow
def test_no_program_sorts_the_vocabulary():
    x = make_logits(0, (4, 5000))
    step = jax.jit(lambda key, x: sample(key, x, 0.7, 50, 0.9, min_p=0.1))
    program = step.lower(jax.random.key(0), x).compile().as_text()
    pivots = "s32[4,3]{1,0}"
    assert set(re.findall(r"(\S+) sort\(", program)) <= {pivots}
    assert "TopK" not in program


@pytest.mark.slow
def test_gradient_through_a_token_is_zero_not_an_error():
    x = jnp.asarray(make_logits(0, (4, 129)))

    def loss(x):
        tokens = sample(jax.random.key(0), x, 0.7, 5, 0.9)
        return jnp.sum(jnp.take_along_axis(x, tokens[:, None], axis=1))

    gradient = jax.grad(loss)(x)
    assert float(gradient.sum()) == 4.0
    assert int((gradient != 0).sum()) == 4


@pytest.mark.slow
def test_inside_scan_and_while_loop():
    x = jnp.asarray(make_logits(0, (4, 129)))
    key = jax.random.key(0)

    def step(carry, i):
        return carry, sample(jax.random.fold_in(key, i), x, 0.7, 50, 0.9)

    _, tokens = jax.lax.scan(step, None, jnp.arange(5))
    expected = [sample(jax.random.fold_in(key, i), x, 0.7, 50, 0.9) for i in range(5)]
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["rows", "vocabulary"])
def test_sharded(axis):
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("rows", "vocabulary"), axis_types=auto)
    spec = {"rows": ("rows", None), "vocabulary": (None, "vocabulary")}[axis]
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    # Devices that hold whole chunks of the vocabulary, and devices that share them.
    for seed, (v, spread) in enumerate(
        [(16384, "normal"), (16384, "two levels"), (20000, "normal")]
    ):
        x = make_logits(seed, (8, v), spread)
        key = jax.random.key(seed)
        settings = make_settings(seed, (8,), v)
        expected = reference.sample(key, x, **settings)
        np.testing.assert_array_equal(
            sample(key, jax.device_put(x, sharding), **settings), expected
        )


@pytest.mark.slow
def test_no_device_gathers_the_logits():
    mesh = jax.make_mesh((4,), ("v",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "v"))
    x = jax.device_put(make_logits(0, (8, 65536)), sharding)

    def step(key, x):
        return sample(key, x, 0.8, 9000, 0.9, min_p=1e-3)

    program = jax.jit(step).lower(jax.random.key(0), x).compile().as_text()
    gathers = [
        line.split(" all-gather(")[0] for line in program.splitlines() if "all-gather(" in line
    ]
    shapes = [shape for line in gathers for shape in re.findall(r"\[([\d,]+)\]", line)]
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    assert sizes  # else the program is written otherwise, and this tells nothing
    assert max(sizes) < x.size / 50


@pytest.mark.slow
def test_other_key_implementations():
    x = make_logits(0, (4, 129))
    for name in ("rbg", "unsafe_rbg"):
        assert_equals_reference(jax.random.key(3, impl=name), x, {})
        row_keys = jax.random.split(jax.random.key(3, impl=name), 4)
        tokens = assert_equals_reference(row_keys, x, {})
        assert tokens.tolist() == [int(sample(k, row)) for k, row in zip(row_keys, x, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sharded", ["settings", "all", "logits", "keys", "all but settings", "all, searched in parts"]
)
def test_shard_map(sharded):
    shape = (16, 50000) if "parts" in sharded else (8, 300)
    x = make_logits(0, shape)
    settings = make_settings(0, shape[:1], shape[1])
    row_keys = jax.random.split(jax.random.key(0), shape[0])
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, one = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()
    numbers = {"temperature": 0.8, "top_k": 5, "top_p": 0.9}
    arguments, specs = {
        "logits": ((row_keys[0], x, numbers), (one, rows, one)),
        "keys": ((row_keys, x[:2], numbers), (rows, one, one)),
        "all but settings": ((row_keys, x, numbers), (rows, rows, one)),
        "settings": ((row_keys[:2], x[:2], settings), (one, one, rows)),
        "all": ((row_keys, x, settings), (rows, rows, rows)),
    }[sharded.split(",")[0]]
    mapped = jax.jit(jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=rows))
    parts = 1 if sharded.startswith("all") else 4
    expected = []
    for i in range(parts):
        shard = [
            jax.tree.map(lambda a, i=i: a[i * len(a) // parts :][: len(a) // parts], argument)
            if spec == rows and parts > 1
            else argument
            for argument, spec in zip(arguments, specs, strict=True)
        ]
        expected.append(call(*shard))
    np.testing.assert_array_equal(mapped(*arguments), np.concatenate(expected))


@pytest.mark.slow
def test_vmap_over_some_arguments():
    x = make_logits(0, (6, 129))
    row_keys = jax.random.split(jax.random.key(0), 6)
    temperature = jnp.linspace(0.0, 2.0, 6)

    def step(key, x, temperature):
        return sample(key, x, temperature, 20, 0.9)

    for axes in ((0, None, None), (None, 0, 0)):
        arguments = [
            a if axis == 0 else a[2]
            for a, axis in zip((row_keys, x, temperature), axes, strict=True)
        ]
        every = [
            a if axis == 0 else [a[2]] * 6
            for a, axis in zip((row_keys, x, temperature), axes, strict=True)
        ]
        expected = [step(*row) for row in zip(*every, strict=True)]
        np.testing.assert_array_equal(jax.vmap(step, axes)(*arguments), expected)


@pytest.mark.slow
def test_without_jit():
    """As someone has it who looks at values step by step."""
    x, key = make_logits(0, (3, 100)), jax.random.key(0)
    settings = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01}
    with jax.disable_jit():
        tokens, kept = sample(key, x, **settings), process_logits(x, **settings)
    np.testing.assert_array_equal(tokens, reference.sample(key, x, **settings))
    np.testing.assert_array_equal(kept, process_logits(x, **settings))


def test_empty_batch():
    empty = jnp.zeros((0, 5))
    assert sample(jax.random.key(0), empty, 0.7, 3, 0.9).shape == (0,)
    for v in (5, 300):
        none = jnp.zeros((0, v))
        assert jax.vmap(lambda x: sample(jax.random.key(0), x, 0.7, 3, 0.9))(none).shape == (0,)
        assert jax.vmap(lambda x: process_logits(x, 0.7, 3, 0.9))(none).shape == (0, v)
    assert sample(jax.random.key(0), jnp.zeros((2, 0, 5))).shape == (2, 0)
