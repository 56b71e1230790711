"""Log-probabilities of given tokens: what they are, their ranks, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from inputs import DTYPES, HOLES, few_logits, make_logits, make_settings, real_logits, seeds
from references import logprobs as plain
from test_strict_settings import enable_x64

from sampling_jax import (
    log_kept_mass,
    log_prob,
    logprobs,
    process_logits,
    reference,
    sample,
    sample_with_logprobs,
)

KEY = jax.random.key(0)
# A difference of float32 logits is exact here too; what is left is a quotient, a sum and a log.
CLOSE = {"rtol": 1e-6, "atol": 1e-5}


def make_tokens(seed, shape):
    """Ids, half of them of likely tokens, and some that are none."""
    *batch, v = shape
    rng = np.random.default_rng(seed)
    tokens = rng.integers(v, size=batch)
    return np.where(
        rng.random(batch) < 0.2, rng.choice([-1, v, -(2**31), 2**31 - 1], batch), tokens
    )


def assert_logprobs(x, tokens, top):
    result = logprobs(x, tokens, top)
    expected = plain.logprobs(x, tokens, top)
    dtypes = (np.float32, np.int32, np.int32, np.float32)
    for got, want, dtype in zip(result, expected, dtypes, strict=True):
        assert (got.dtype, got.shape) == (dtype, want.shape)
    np.testing.assert_array_equal(result.rank, expected[1])
    np.testing.assert_array_equal(result.top_tokens, expected[2])
    np.testing.assert_allclose(result.logprob, expected[0], **CLOSE)
    np.testing.assert_allclose(result.top_logprobs, expected[3], **CLOSE)
    return result


@given(few_logits, seeds)
def test_logprobs_equal_reference(x, seed):
    assert_logprobs(x, make_tokens(seed, x.shape), 5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_logprobs_of_every_dtype(dtype):
    x = make_logits(0, (6, 100), "normal", "all", dtype)
    for tokens in (np.int8, np.uint8, np.int64, np.uint32):
        assert_logprobs(x, make_tokens(0, x.shape).clip(0, 127).astype(tokens), 4)


@pytest.mark.slow
def test_logprobs_of_real_logits():
    x = real_logits()
    tokens = np.asarray(sample(KEY, x))
    result = assert_logprobs(x, tokens, 20)
    np.testing.assert_array_equal(result.top_tokens[:, 0], sample(KEY, x, 0))
    greedy = logprobs(x, sample(KEY, x, 0), 1)
    assert greedy.rank.tolist() == [1] * 8
    np.testing.assert_array_equal(greedy.logprob, greedy.top_logprobs[:, 0])


@pytest.mark.slow
def test_logprobs_of_the_processed_distribution():
    x = make_logits(0, (8, 100))
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.9}
    tokens = np.asarray(sample(KEY, x, **settings))
    processed = process_logits(x, **settings)
    result = logprobs(processed, tokens, 100)
    np.testing.assert_allclose(result.logprob, log_prob(x, tokens, **settings), **CLOSE)
    kept = (np.asarray(processed) > -np.inf).sum(-1)
    np.testing.assert_array_equal((np.asarray(result.top_tokens) >= 0).sum(-1), kept)
    np.testing.assert_allclose(np.exp(result.top_logprobs).sum(-1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_program_sorts_the_vocabulary(dtype):
    x = jnp.asarray(make_logits(0, (4, 5000), dtype=dtype))
    tokens = jnp.zeros(4, jnp.int32)

    def last(x, tokens):  # a slice of lax.top_k itself would make it a sort
        return logprobs(x, tokens, 20).top_tokens[:, -1:]

    for call in (last, lambda x, t: logprobs(x, t, 20), log_prob):
        program = jax.jit(call).lower(x, tokens).compile().as_text()
        assert " sort(" not in program
        assert ("TopK" in program) == (call is not log_prob)


@given(few_logits, seeds)
def test_log_prob_equals_reference(x, seed):
    settings = make_settings(seed, x.shape[:-1], x.shape[-1])
    tokens = make_tokens(seed, x.shape)
    # Where a filter keeps little, most tokens are out: every other row has its most likely one.
    tokens = np.where(
        np.random.default_rng(seed).random(tokens.shape) < 0.5,
        tokens,
        np.argmax(reference.clean(x), -1),
    )
    result = np.asarray(log_prob(x, tokens, **settings))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, plain.log_prob(x, tokens, settings), **CLOSE)


@given(few_logits, seeds)
def test_sample_with_logprobs_equals_both(x, seed):
    settings = make_settings(seed, x.shape[:-1], x.shape[-1])
    key = jax.random.key(seed)
    tokens, result = sample_with_logprobs(key, x, **settings)
    assert (tokens.dtype, result.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(tokens, reference.sample(key, x, **settings))
    np.testing.assert_allclose(result, plain.log_prob(x, tokens, settings), **CLOSE)
    assert (result <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
def test_sample_with_logprobs_in_every_form(x64):
    x = make_logits(0, (8, 301), "normal", "all")
    settings = make_settings(0, (8,), 301)
    keys = jax.random.split(KEY, 8)
    rows = (keys, x, settings)

    def call(key, x, settings):
        return sample_with_logprobs(key, x, **settings)

    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")
    mapped = jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec)
    with enable_x64(x64), jax.debug_nans(True):
        tokens, result = call(*rows)
    with enable_x64(x64), jax.debug_nans(False):
        others = [f(*rows) for f in (jax.jit(call), jax.vmap(call), jax.jit(mapped))]
    np.testing.assert_array_equal(tokens, sample(keys, x, **settings))
    np.testing.assert_allclose(result, plain.log_prob(x, tokens, settings), **CLOSE)
    for other in others:
        np.testing.assert_array_equal(other[0], tokens)
        np.testing.assert_allclose(other[1], result, rtol=1e-6, atol=1e-6)
    none = np.zeros((0, 5), np.float32)
    for form in (lambda x: x, jax.vmap):
        empty = form(lambda x: sample_with_logprobs(KEY, x, 0.7, 3))(none)
        assert [(a.shape, a.dtype) for a in empty] == [((0,), np.int32), ((0,), np.float32)]


@pytest.mark.slow
def test_sample_with_logprobs_has_no_gradient():
    def loss(x, temperature):
        return sample_with_logprobs(KEY, x, temperature, 3)[1].sum()

    x = jnp.asarray(make_logits(0, (3, 50)))
    for gradient in jax.grad(loss, (0, 1))(x, jnp.float32(0.7)):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
def test_sample_with_logprobs_of_real_logits():
    """Of a few tokens and of many, the log-probability is that of exact arithmetic."""
    x = real_logits()
    for settings in ({}, {"temperature": 0.8, "top_k": 50, "top_p": 0.9}, {"temperature": 5.0}):
        tokens, result = sample_with_logprobs(KEY, x, **settings)
        np.testing.assert_array_equal(tokens, sample(KEY, x, **settings))
        full = {"temperature": 1.0, **settings}
        np.testing.assert_allclose(result, plain.log_prob(x, tokens, full), **CLOSE)


@given(few_logits, seeds)
def test_log_kept_mass_equals_reference(x, seed):
    settings = make_settings(seed, x.shape[:-1], x.shape[-1])
    result = np.asarray(log_kept_mass(x, **settings))
    assert result.dtype == np.float32
    assert (result <= 0).all()
    np.testing.assert_allclose(result, plain.log_kept_mass(x, settings), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("structure", [(), ("temperature",), ("top_k",), ("top_p", "min_p")])
def test_settings_that_are_none(structure):
    x = np.concatenate([make_logits(0, (6, 100), s, "all") for s in ("normal", "two levels")])
    settings = make_settings(1, (12,), 100, structure)
    if "temperature" in settings:
        settings["temperature"] = settings["temperature"].at[8:].set(0)
    tokens = np.asarray(sample(KEY, x, **settings))
    assert (tokens >= 0).all()
    assert np.isfinite(log_prob(x, tokens, **settings)).all()  # what was drawn was kept
    for tokens_of_all in (tokens, make_tokens(0, x.shape), (tokens + 1) % 100):
        result = log_prob(x, tokens_of_all, **settings)
        expected = plain.log_prob(x, tokens_of_all, settings)
        np.testing.assert_allclose(result, expected, **CLOSE)
    np.testing.assert_allclose(
        log_kept_mass(x, **settings), plain.log_kept_mass(x, settings), **CLOSE
    )


@pytest.mark.slow
def test_probabilities_of_all_tokens_add_up_to_one():
    x = make_logits(0, (3, 100))
    settings = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01}
    every = np.broadcast_to(x[:, None], (3, 100, 100))
    tokens = np.broadcast_to(np.arange(100), (3, 100))
    p = np.exp(log_prob(every, tokens, **settings))
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(p > 0, np.asarray(process_logits(x, **settings)) > -np.inf)


@pytest.mark.slow
def test_log_kept_mass_is_what_filters_add():
    x = make_logits(0, (64, 100))
    settings = {"temperature": 0.8, "top_k": 80, "top_p": 0.9, "min_p": 0.01}
    tokens = sample(KEY, x, **settings)
    np.testing.assert_allclose(
        log_prob(x, tokens, **settings) + log_kept_mass(x, **settings),
        log_prob(x, tokens, 0.8),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.slow
def test_log_kept_mass_near_one():
    x = np.array([0.0, 0.0, -16.0], np.float32)  # 1 - 5.6e-8, which float32 cannot tell from 1
    expected = np.log1p(-np.exp(-16.0) / (2 + np.exp(-16.0)))
    np.testing.assert_allclose(log_kept_mass(x, top_k=2), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("holes", sorted(HOLES))
def test_off_changes_nothing(holes):
    seed = len(holes)
    x = make_logits(seed, (2, 3, 5000), "normal", holes)
    tokens = make_tokens(seed, x.shape)
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    plainly = np.asarray(log_prob(x, tokens))
    np.testing.assert_array_equal(log_prob(x, tokens, **off), plainly)
    np.testing.assert_array_equal(log_prob(x, tokens, None), plainly)
    drawable = np.where(np.isnan(x), -np.inf, x).max(-1) > -np.inf
    mass = np.where(drawable, np.float32(0), np.float32(-np.inf))
    np.testing.assert_array_equal(log_kept_mass(x, 0.7, **off), mass)


@jax.jit
def gradients(x, tokens, settings):
    """Of the log-probability and the log kept mass of rows, by logits and temperature."""

    def finite_sum(value):
        return jnp.sum(jnp.where(value > -jnp.inf, value, 0))

    def token(x, temperature):
        return finite_sum(log_prob(x, tokens, **settings | {"temperature": temperature}))

    def mass(x, temperature):
        return finite_sum(log_kept_mass(x, **settings | {"temperature": temperature}))

    return [jax.grad(f, (0, 1))(x, settings["temperature"]) for f in (token, mass)]


def test_gradients_are_right():
    """Against their closed form in float64, on logits that hold 0 and -inf."""
    x = make_logits(0, (6, 100))
    x[:, :20] = -np.inf
    x[:, 20:25] = 0
    settings = {"temperature": jnp.linspace(0.5, 1.5, 6), "top_k": 40, "top_p": 0.9}
    tokens = np.asarray(sample(KEY, x, **settings))
    by_token, by_mass = gradients(x, tokens, settings)
    rows = list(plain.processed(x, settings))
    for i, (offset, t, possible, kept) in enumerate(rows):
        p, q = (
            np.exp(plain.log_softmax(np.where(m, offset, -np.inf).astype(np.float32), t))
            for m in (kept, possible)
        )
        one = np.arange(100) == tokens[i]
        z = np.where(possible, offset, 0).astype(np.float64) / t
        for (by_x, by_t), d in ((by_token, one - p), (by_mass, p - q)):
            np.testing.assert_allclose(by_x[i], d / t, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(by_t[i], -(d * z).sum() / t, rtol=1e-4, atol=1e-5)
            assert (np.asarray(by_x[i])[~possible] == 0).all()


@pytest.mark.slow
@given(few_logits, seeds)
def test_gradients_are_never_nan(x, seed):
    settings = make_settings(seed, x.shape[:-1], x.shape[-1])
    for gradient in jax.tree.leaves(gradients(x, make_tokens(seed, x.shape), settings)):
        assert not np.isnan(gradient).any()


@pytest.mark.slow
def test_gradient_is_zero_where_there_is_nothing():
    x = make_logits(0, (6, 100))
    x[0] = -np.inf
    x[1] = np.nan
    x[2, 5] = np.inf
    tokens = np.array([3, 3, 5, -1, 100, np.argmin(x[5])])
    settings = {"temperature": jnp.array([1.0, 1, 1, 1, 1, 1]), "top_k": 5}
    with jax.debug_nans(True):
        (by_x, by_t), _ = gradients(x, tokens, settings)
    assert not np.asarray(by_x).any()
    assert not np.asarray(by_t).any()
    greedy = {"temperature": jnp.zeros(6)}
    for gradient in jax.tree.leaves(gradients(x, tokens, greedy)):
        assert not np.asarray(gradient).any()


def calls(x, tokens, settings):
    return log_prob(x, tokens, **settings), log_kept_mass(x, **settings), logprobs(x, tokens, 3)


@pytest.mark.slow
def test_jit_vmap_and_scan():
    x = make_logits(0, (6, 100), "normal", "all")
    settings = make_settings(0, (6,), 100, ("temperature", "top_k"))
    tokens = make_tokens(0, x.shape)
    expected = calls(x, tokens, settings)

    def step(carry, row):
        return carry, calls(*row)

    others = (
        jax.jit(calls)(x, tokens, settings),
        jax.vmap(calls)(x, tokens, settings),
        jax.lax.scan(step, None, (x, tokens, settings))[1],
    )
    for other in others:
        assert jax.tree.structure(other) == jax.tree.structure(expected)
        for got, want in zip(jax.tree.leaves(other), jax.tree.leaves(expected), strict=True):
            if want.dtype == np.int32:
                np.testing.assert_array_equal(got, want)
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_sharded():
    x = make_logits(0, (8, 300))
    tokens = make_tokens(0, x.shape)
    expected = logprobs(x, tokens, 5)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")
    mapped = jax.shard_map(
        lambda x, tokens: logprobs(x, tokens, 5), mesh=mesh, in_specs=spec, out_specs=spec
    )
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "rows"))
    others = jax.jit(mapped)(x, tokens), logprobs(jax.device_put(x, sharding), tokens, 5)
    for other in others:
        np.testing.assert_array_equal(other.rank, expected.rank)
        np.testing.assert_array_equal(other.top_tokens, expected.top_tokens)
        np.testing.assert_allclose(other.top_logprobs, expected.top_logprobs, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
def test_strict_settings(x64):
    x = make_logits(0, (6, 100), "normal", "all", np.float64 if x64 else np.float32)
    settings = make_settings(0, (6,), 100)
    tokens = make_tokens(0, x.shape)
    with enable_x64(x64), jax.debug_nans(True):
        one, mass, report = calls(x, tokens, settings)
    assert (one.dtype, mass.dtype) == (np.float32, np.float32)
    assert [part.dtype for part in report] == [np.float32, np.int32, np.int32, np.float32]
    np.testing.assert_allclose(one, plain.log_prob(x, tokens, settings), **CLOSE)


@pytest.mark.slow
def test_shapes():
    x = jnp.asarray(make_logits(0, (2, 3, 5000)))
    tokens = sample(KEY, x)
    t = jnp.array([[0.5], [1.5]])
    full = jnp.broadcast_to(t, (2, 3))
    np.testing.assert_array_equal(log_prob(x, tokens, t), log_prob(x, tokens, full))
    assert log_kept_mass(x, 0.7, 5).shape == (2, 3)
    result = logprobs(x[0, 0], int(tokens[0, 0]))
    assert [part.shape for part in result] == [(), (), (0,), (0,)]
    empty = jnp.zeros((0, 5))
    none = jnp.zeros(0, jnp.int32)
    assert log_prob(empty, none, 0.7, 3, 0.9).shape == (0,)
    assert log_prob(empty, none).shape == (0,)
    assert log_kept_mass(empty, 0.7, 3).shape == (0,)
    assert [part.shape for part in logprobs(empty, none, 2)] == [(0,), (0,), (0, 2), (0, 2)]


X = np.zeros((2, 3, 5), np.float32)
TOKENS = np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (
            [[0]],
            TypeError,
            "tokens must be an integer array, got list; convert with jnp.asarray(tokens, "
            "jnp.int32).",
        ),
        (
            np.zeros((2, 3), np.float32),
            TypeError,
            "tokens must be an integer array, got float32; convert with tokens.astype(jnp.int32).",
        ),
        (
            True,
            TypeError,
            "tokens must be an integer array, got bool; convert with tokens.astype(jnp.int32).",
        ),
        (
            np.zeros((2, 3), ">i4"),
            TypeError,
            "tokens must be an integer array, got >i4; convert with tokens.astype(jnp.int32).",
        ),
        (
            np.zeros((2, 1), np.int32),
            ValueError,
            "tokens must have shape (2, 3) to fit the logits, got shape (2, 1); pass one for each "
            "row.",
        ),
    ],
)
def test_token_errors(tokens, error, message):
    for call in (logprobs, log_prob, jax.jit(lambda x, t=tokens: log_prob(x, t))):
        with pytest.raises(error) as info:
            call(X, tokens) if call in (logprobs, log_prob) else call(X)
        assert str(info.value) == message


@pytest.mark.parametrize(
    "token", [np.int64(2**32 + 3), np.uint64(2**64 - 1), 2**40, -(2**40), 2**70]
)
def test_ids_beyond_32_bits_are_none(token):
    assert log_prob(X[0, 0], token) == -np.inf
    result = logprobs(X[0, 0], token)
    assert (result.logprob, result.rank) == (-np.inf, -1)


@pytest.mark.parametrize(
    ("top", "error", "message"),
    [
        (6, ValueError, "top must be in [0, 5], got 6; there are no more tokens."),
        (-1, ValueError, "top must be in [0, 5], got -1; there are no more tokens."),
        (2.0, TypeError, "top must be an integer, got float; pass a Python int."),
        (True, TypeError, "top must be an integer, got bool; pass a Python int."),
        (np.ones(2, int), TypeError, "top must be an integer, got ndarray; pass a Python int."),
    ],
)
def test_top_errors(top, error, message):
    with pytest.raises(error) as info:
        logprobs(X, TOKENS, top)
    assert str(info.value) == message


def test_errors_are_those_of_sample():
    for call in (lambda **s: log_prob(X, TOKENS, **s), lambda **s: log_kept_mass(X, **s)):
        with pytest.raises(ValueError, match=r"top_p must be in \[0, 1\], got 1.5"):
            call(top_p=1.5)
    with pytest.raises(TypeError, match="logits must have a floating dtype, got int32"):
        logprobs(TOKENS, TOKENS[:, 0])
