"""`sample_n` equals its specification, and its draws without replacement their law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import (
    HOLES,
    SPREADS,
    count_compilations,
    keys,
    make_logits,
    make_settings,
    on_device,
    seeds,
)
from references import many as plain
from scipy.stats import ks_2samp
from test_statistics import ALPHA, p_value, power, probabilities
from test_strict_settings import enable_x64

from sampling_jax import SamplingParams, process_logits, sample, sample_n

SHAPE, N = (2, 3, 100), 6
both_ways = pytest.mark.parametrize("replace", [True, False])


def assert_equals_reference(key, x, n, replace, settings):
    result = sample_n(key, x, n, **settings, replace=replace)
    expected = plain.sample_n(key, x, n, replace, **settings)
    assert (result.dtype, result.shape) == (np.int32, (*x.shape[:-1], n))
    np.testing.assert_array_equal(result, expected)
    return np.asarray(result)


@both_ways
@given(
    keys,
    seeds,
    st.sampled_from(sorted(SPREADS)),
    st.sampled_from(sorted(HOLES)),
)
def test_equals_reference(replace, key, seed, spread, holes):
    x = make_logits(seed, SHAPE, spread, holes)
    settings = make_settings(seed, SHAPE[:-1], SHAPE[-1])
    tokens = assert_equals_reference(key, x, N, replace, settings).reshape(-1, N)
    if not replace:
        for row in tokens:
            drawn = row[row >= 0]
            assert len(set(drawn)) == len(drawn)
            assert (row[len(drawn) :] == -1).all()


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize("structure", [(), ("temperature",), ("top_k",), ("top_p", "min_p")])
def test_settings_that_are_none(structure, replace):
    for seed, holes in enumerate(sorted(HOLES)):
        x = make_logits(seed, (6, 100), "normal", holes)
        row_keys = jax.random.split(jax.random.key(seed), 6)
        settings = make_settings(seed, (6,), 100, structure)
        assert_equals_reference(row_keys, x, 5, replace, settings)


@pytest.mark.slow
@both_ways
def test_large_vocabulary(replace):
    x = make_logits(0, (2, 70_000))
    assert_equals_reference(jax.random.key(0), x, 50, replace, {"temperature": 0.7})


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize("own_keys", [False, True])
def test_one_token_is_that_of_sample(replace, own_keys):
    key = jax.random.key(1)
    key = jax.random.split(key, (20, 6)) if own_keys else key
    x = make_logits(0, (20, 6, 100), "normal", "all")
    settings = make_settings(0, (20, 6), 100)
    result = sample_n(key, x, 1, **settings, replace=replace)
    np.testing.assert_array_equal(result[..., 0], sample(key, x, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"top_k": 40, "top_p": 0.9}])
def test_without_replacement_all_that_can_be_drawn_is(settings):
    x = make_logits(0, (6, 100), "normal", "empty rows")
    tokens = np.asarray(sample_n(jax.random.key(0), x, 140, 1.5, **settings, replace=False))
    kept = np.asarray(process_logits(x, 1.5, **settings)) > -np.inf
    assert set(kept.any(axis=1)) == {True, False}
    for row, mask in zip(tokens, kept, strict=True):
        ids = np.flatnonzero(mask)
        assert sorted(row[: len(ids)]) == ids.tolist()
        assert (row[len(ids) :] == -1).all()


@pytest.mark.slow
def test_what_weighs_nothing_is_never_drawn():
    x = np.array([0, -100, 0, -np.inf], np.float32)
    tokens = sample_n(jax.random.key(0), x, 4, replace=False)
    assert sorted(tokens.tolist()) == [-1, -1, 0, 2]


@pytest.mark.slow
def test_a_greedy_row_keeps_one_token():
    x = np.array([1, 3, 3, 2], np.float32)
    key = jax.random.key(0)
    assert sample_n(key, x, 3, 0.0).tolist() == [1, 1, 1]
    assert sample_n(key, x, 3, 0.0, replace=False).tolist() == [1, -1, -1]
    assert sample_n(key, x, 3, 0.0, 3, replace=False).tolist() == [1, -1, -1]


V, ROWS = 12, 2**17
SETTINGS = {"temperature": 1.3, "top_k": 10, "top_p": 0.97}


def row_logits():
    return np.random.default_rng(0).normal(size=V).astype(np.float32) * 2


def second_after_first(p):
    """float64 [V * V]: of the pairs of two draws from p [V] without replacement."""
    joint = p[:, None] * p[None, :] / np.maximum(1 - p[:, None], 1e-300)
    return np.where(np.eye(V, dtype=bool), 0, joint).ravel()


@pytest.mark.slow
def test_second_draws_follow_their_law():
    """The effects that this detects are below."""
    x = jnp.broadcast_to(row_logits(), (ROWS, V))
    tokens = np.asarray(sample_n(jax.random.key(5), x, 2, **SETTINGS, replace=False))
    assert (tokens >= 0).all()
    counts = np.bincount(tokens @ [V, 1], minlength=V * V)
    p = second_after_first(probabilities(row_logits(), **SETTINGS))
    assert p_value(counts[None], p[None]) > ALPHA


def test_effects_are_detected():
    p = probabilities(row_logits(), **SETTINGS)
    # 3 % of the second tokens are the neighbour of the first, and a temperature 4 % off.
    kept = np.flatnonzero(p)
    neighbour = np.zeros((V, V))
    neighbour[kept, np.roll(kept, 1)] = p[kept]
    joint = second_after_first(p)
    moved = 0.97 * joint + 0.03 * neighbour.ravel()
    hotter = p ** (1 / 1.04)
    for wrong in (moved, second_after_first(hotter / hotter.sum())):
        assert power(joint[None], wrong[None], ROWS) > 0.99


@pytest.mark.slow
@both_ways
def test_one_result_however_it_is_called(replace):
    x = make_logits(3, (6, 100), "normal", "all")
    settings = make_settings(3, (6,), 100)
    row_keys = jax.random.split(jax.random.key(3), 6)

    def call(key, x, settings):
        return sample_n(key, x, 5, **settings, replace=replace)

    rows = (row_keys, x, settings)
    expected = call(*rows)
    order = np.random.default_rng(0).permutation(6)
    shuffled = call(*jax.tree.map(lambda a: a[order], rows))
    others = (
        jax.jit(call)(*rows),
        jax.vmap(call)(*rows),
        jax.vmap(jax.vmap(call))(*jax.tree.map(lambda a: a[:, None], rows))[:, 0],
        jax.lax.scan(lambda c, row: (c, call(*row)), None, rows)[1],
        call(jax.random.key_data(row_keys), x, settings),
        shuffled[np.argsort(order)],
    )
    for other in others:
        np.testing.assert_array_equal(other, expected)


@pytest.mark.slow
@both_ways
def test_vmap_over_some_arguments(replace):
    x = make_logits(0, (3, 100))
    row_keys = jax.random.split(jax.random.key(3), 4)
    by_key = jax.vmap(lambda key: sample_n(key, x[0], 5, 0.9, replace=replace))(row_keys)
    tiled = np.repeat(x[:1], 4, axis=0)
    expected = sample_n(row_keys, tiled, 5, 0.9, replace=replace)
    np.testing.assert_array_equal(by_key, expected)
    temperatures = jnp.array([0.0, 0.5, 2.0])

    def call(t):
        return sample_n(row_keys[0], x, 5, t, 20, replace=replace)

    by_temperature = jax.vmap(call)(temperatures)
    np.testing.assert_array_equal(by_temperature, np.stack([call(t) for t in temperatures]))


@pytest.mark.slow
@both_ways
def test_shard_map_over_some_arguments(replace):
    x = make_logits(0, (8, 300))
    row_keys = jax.random.split(jax.random.key(0), 8)
    top_k = np.arange(8, dtype=np.int32)

    def call(key, x, top_k):
        return sample_n(key, x, 4, 0.9, top_k, replace=replace)

    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, one = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()
    for specs in ((rows, rows, rows), (rows, one, one), (one, rows, one), (one, one, rows)):
        given = list(zip((row_keys, x, top_k), specs, strict=True))
        mapped = jax.jit(jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=rows))
        result = mapped(*(a if s == rows else a[:2] for a, s in given))
        expected = [
            call(*(a[i : i + 2] if s == rows else a[:2] for a, s in given)) for i in range(0, 8, 2)
        ]
        np.testing.assert_array_equal(result, np.concatenate(expected))


@pytest.mark.slow
@both_ways
def test_logits_sharded_over_the_vocabulary(replace):
    x = make_logits(0, (2, 16384))
    mesh = jax.make_mesh((4,), ("v",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "v"))
    key = jax.random.key(0)
    result = sample_n(key, jax.device_put(x, sharding), 3, 0.9, 50, replace=replace)
    np.testing.assert_array_equal(result, sample_n(key, x, 3, 0.9, 50, replace=replace))


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_key_implementations(impl, replace):
    x = make_logits(0, (3, 100))
    key = jax.random.key(3, impl=impl)
    assert_equals_reference(key, x, 4, replace, {})
    assert_equals_reference(jax.random.split(key, 3), x, 4, replace, {})


@pytest.mark.slow
def test_sampling_params():
    x = make_logits(0, (5, 100))
    params = SamplingParams.stack([{}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.5}, {}])
    settings = {name: np.asarray(params[name]) for name in params.keys()}  # noqa: SIM118
    result = sample_n(jax.random.key(0), x, 4, **params, replace=False)
    expected = plain.sample_n(jax.random.key(0), x, 4, False, **settings)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.slow
@both_ways
def test_new_values_do_not_recompile(replace):
    x = on_device(make_logits(0, (2, 100)))
    key = jax.random.key(0)
    sample_n(key, x, 3, 0.5, 3, replace=replace)
    compilations = count_compilations()
    for n, temperature, top_k in ((3, 1, np.int64(5)), (np.int64(3), 0.0, 2**40)):
        sample_n(key, x, n, temperature, top_k, replace=replace)
    assert not compilations


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize("x64", [False, True])
def test_strict_settings(x64, replace):
    x = make_logits(0, (6, 100), "normal", "all", np.float64 if x64 else np.float32)
    settings = make_settings(0, (6,), 100)
    expected = plain.sample_n(jax.random.key(0), x, 4, replace, **settings)
    with enable_x64(x64), jax.debug_nans(True), jax.debug_key_reuse(True):
        key = jax.random.key(0)
        result = sample_n(key, x, 4, **settings, replace=replace)
        with pytest.raises(jax.errors.KeyReuseError):
            sample(key, x)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, expected)


@pytest.mark.slow
@both_ways
def test_gradient_through_tokens_is_zero_not_an_error(replace):
    x = make_logits(0, (3, 100))

    def loss(x, temperature):
        tokens = sample_n(jax.random.key(0), x, 4, temperature, 50, replace=replace)
        return jnp.sum(tokens.astype(jnp.float32)) + jnp.sum(x)

    by_x, by_temperature = jax.grad(loss, (0, 1))(x, 0.7)
    assert (np.asarray(by_x) == 1).all()
    assert by_temperature == 0


@pytest.mark.slow
def test_perturbed_log_probabilities():
    """Those that the docstring gives for beam search are the largest of perturbed ones."""
    x, n, rows = make_logits(0, (9,)), 3, 20_000
    batch = jnp.broadcast_to(x, (rows, 9))
    tokens = sample_n(jax.random.key(0), batch, n, replace=False)
    chosen = jnp.exp(jax.nn.log_softmax(x)[tokens])
    left = 1 - jnp.cumsum(chosen, axis=1) + chosen
    noise = jax.random.exponential(jax.random.key(1), (rows, n))
    gumbel = jax.random.gumbel(jax.random.key(2), (rows, 9))
    direct = -jnp.sort(-(jax.nn.log_softmax(batch) + gumbel), axis=1)[:, :n]
    for i in range(n):
        wrong = -jnp.log(jnp.cumsum(noise, axis=1))[:, i]
        ours = -jnp.log(jnp.cumsum(noise / left, axis=1))[:, i]
        assert ks_2samp(ours, direct[:, i]).pvalue > ALPHA
        assert i == 0 or ks_2samp(wrong, direct[:, i]).pvalue < ALPHA


def test_replace_of_numpy():
    tokens = [sample_n(jax.random.key(0), X, 3, replace=r) for r in (False, np.False_)]
    np.testing.assert_array_equal(*tokens)


def test_traced_numbers_of_draws():
    with pytest.raises(TypeError, match=r"n must be an integer, got .*Tracer; pass a Python int\."):
        jax.jit(lambda n: sample_n(jax.random.key(0), X, n))(2)


def test_no_rows():
    assert sample_n(jax.random.key(0), jnp.zeros((2, 0, 5)), 3).shape == (2, 0, 3)


X = np.zeros((2, 5), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 2.0}, TypeError, "n must be an integer, got float; pass a Python int."),
        ({"n": np.array([2])}, TypeError, "n must be an integer, got ndarray; pass a Python int."),
        ({"n": True}, TypeError, "n must be an integer, got bool; pass a Python int."),
        ({"n": 0}, ValueError, "n must be >= 1, got 0; pass how many tokens to draw."),
        ({"replace": 1}, TypeError, "replace must be a bool, got int; pass True or False."),
        (
            {"logits": X.tolist()},
            TypeError,
            "logits must be an array, got list; convert with jnp.asarray.",
        ),
        (
            {"top_p": 1.5},
            ValueError,
            "top_p must be in [0, 1], got 1.5; None or 1 is off.",
        ),
        (
            {"key": jax.random.split(jax.random.key(0), 3)},
            ValueError,
            "key must be one key or one for each row, of shape () or (2,), got shape (3,); make "
            "one with jax.random.key(seed), or one per row with jax.random.split.",
        ),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error) as info:
        sample_n(**{"key": jax.random.key(0), "logits": X, "n": 2} | arguments)
    assert str(info.value) == message
