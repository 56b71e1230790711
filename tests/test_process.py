"""`process_logits` is the distribution that `sample` draws from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from inputs import logits, make_logits, make_settings, seeds
from references.process import kept_masks

from sampling_jax import (
    apply_min_p,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    log_prob,
    process_logits,
    reference,
    sample,
)


def expected_mask(x, settings):
    """What the reference keeps and draws from, of rows [N, V]."""
    infinite = reference.clean(x) == np.inf
    return kept_masks(x, settings) & (infinite | ~infinite.any(axis=-1, keepdims=True))


@given(logits, seeds)
def test_keeps_what_the_reference_keeps(x, seed):
    settings = make_settings(seed, x.shape[:-1], x.shape[-1])
    result = np.asarray(process_logits(x, **settings))
    assert (result.dtype, result.shape) == (np.float32, x.shape)
    assert not np.isnan(result).any()
    mask = expected_mask(x, settings)
    # A kept logit is finite, unless it is so far from the largest that a quotient overflows.
    assert not (result[~mask] > -np.inf).any()
    finite = np.where(np.isfinite(x), np.abs(x.astype(np.float64)), 0).max(-1)
    usual = (np.asarray(settings["temperature"]) >= 1e-5) & (finite < 1e30)
    np.testing.assert_array_equal(result[usual] > -np.inf, mask[usual])


@given(logits, seeds)
def test_normalized_rows_add_up_to_one(x, seed):
    settings = make_settings(seed, x.shape[:-1], x.shape[-1])
    result = np.asarray(process_logits(x, **settings, normalize=True))
    assert not np.isnan(result).any()
    assert (result <= 0).all()
    sums = np.exp(result.astype(np.float64)).sum(-1)
    drawable = np.where(np.isnan(x), -np.inf, x).max(-1) > -np.inf
    np.testing.assert_allclose(sums, drawable.astype(float), atol=1e-4)


@given(logits, seeds)
def test_drawn_tokens_are_kept(x, seed):
    settings = make_settings(seed, x.shape[:-1], x.shape[-1])
    tokens = np.asarray(sample(jax.random.key(seed), x, **settings))
    kept = np.asarray(process_logits(x, **settings)) > -np.inf
    at_token = np.take_along_axis(kept, np.maximum(tokens, 0)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(at_token, tokens >= 0)


@pytest.mark.slow
def test_probabilities_are_those_of_a_plain_implementation():
    """Float64, sorted: what the papers say, on rows without ties."""
    x = make_logits(0, (64, 1000))
    t, k, p, min_p = 0.8, 100, 0.9, 0.02
    probabilities = np.exp((x.astype(np.float64) - x.max(-1, keepdims=True)) / t)
    order = np.argsort(-x, -1)
    ranked = np.take_along_axis(probabilities, order, -1)
    ranked[:, k:] = 0
    ranked /= ranked.sum(-1, keepdims=True)
    ranked[ranked.cumsum(-1) - ranked >= p] = 0
    ranked[ranked < min_p * ranked.max(-1, keepdims=True)] = 0
    ranked /= ranked.sum(-1, keepdims=True)
    expected = np.zeros_like(ranked)
    np.put_along_axis(expected, order, ranked, -1)
    result = np.exp(process_logits(x, t, k, p, min_p=min_p, normalize=True))
    np.testing.assert_allclose(result, expected, rtol=3e-6)


@given(logits)
def test_off_is_the_identity(x):
    clean = reference.clean(x)
    infinite = (clean == np.inf).any(-1, keepdims=True)
    expected = np.where(infinite, np.where(clean == np.inf, 0, -np.inf), clean)
    result = process_logits(x, top_k=0, top_p=1.0, min_p=0.0)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.slow
def test_a_chain_of_single_filters_is_the_whole():
    x = make_logits(1, (64, 1000))
    chain = apply_temperature(x, 0.5)
    chain = apply_min_p(apply_top_p(apply_top_k(chain, 100), 0.9), 0.02)
    np.testing.assert_array_equal(chain, process_logits(x, 0.5, 100, 0.9, min_p=0.02))


@pytest.mark.slow
def test_nested_settings_keep_nested_sets():
    for spread in ("normal", "two levels", "bfloat16 ties"):
        x = make_logits(2, (8, 5000), spread)

        def sets(name, values, x=x):
            return [np.asarray(process_logits(x, **{name: v})) > -np.inf for v in values]

        for smaller, larger in (
            *zip(sets("top_k", range(1, 400, 57)), sets("top_k", range(2, 401, 57)), strict=True),
            *zip(sets("top_p", [0.1, 0.5, 0.9]), sets("top_p", [0.2, 0.5, 0.99]), strict=True),
            *zip(sets("min_p", [0.9, 0.5, 0.1]), sets("min_p", [0.8, 0.5, 0.01]), strict=True),
        ):
            assert (smaller <= larger).all()
        for k in (1, 57, 4999):
            assert (sets("top_k", [k])[0].sum(-1) == k).all()


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_are_finite_and_right(normalize):
    x = make_logits(3, (7, 129))
    x[0, :60] = -np.inf
    x[1, 3] = np.inf
    x[2] = -np.inf
    x[3, 5] = np.nan
    temperature = jnp.asarray([0.7, 1.0, 0.5, 1.3, 0.0, 1e-3, 1e-19])

    def loss(x, temperature):
        result = process_logits(x, temperature, 20, 0.9, normalize=normalize)
        # exp, so that what is not kept counts as nothing, as in any expectation.
        return jnp.sum(jnp.exp(jnp.minimum(result, 3)))

    for gradient in jax.grad(loss, (0, 1))(x, temperature):
        assert np.isfinite(gradient).all()

    def log_probability(temperature):
        return process_logits(x[5], temperature, 20, normalize=True)[np.argmax(x[5])]

    step = 1e-3
    numeric = (log_probability(0.8 + step) - log_probability(0.8 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(log_probability)(0.8), numeric, rtol=2e-2)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_beside_a_finite_mask(normalize):
    """Its quotient is -inf, and no part of any gradient."""
    x = jnp.array([1.0, 0.0, np.finfo(np.float32).min])

    def call(x, temperature):
        return process_logits(x, temperature, normalize=normalize)[0]

    for gradients in (jax.grad(call, (0, 1)), jax.hessian(call, (0, 1))):
        result, expected = gradients(x, 0.5), gradients(x.at[2].set(-np.inf), 0.5)
        jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_logits_further_apart_than_float32():
    """The lower one is never drawn, whatever the temperature."""
    x = np.array([np.finfo(np.float32).max, np.finfo(np.float32).min])
    for temperature in (0.5, 1.0, jnp.inf):
        assert process_logits(x, temperature, normalize=True).tolist() == [0, -np.inf]
        assert [log_prob(x, i, temperature) for i in range(2)] == [0, -np.inf]


def test_temperatures_whose_reciprocal_is_tiny():
    x, temperature = np.array([1e38, 0, -1e38], np.float32), 9e37
    expected = x.astype(np.float64) / temperature
    np.testing.assert_allclose(process_logits(x, temperature), expected, rtol=1e-5)
    expected -= np.log(np.sum(np.exp(expected)))
    tokens = np.arange(3)
    for result in (
        process_logits(x, temperature, normalize=True),
        log_prob(np.tile(x, (3, 1)), tokens, temperature),
    ):
        np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.slow
def test_vmap():
    x = make_logits(4, (6, 129))
    settings = make_settings(4, (6,), 129)

    def call(x, settings):
        return process_logits(x, **settings)

    np.testing.assert_array_equal(jax.vmap(call)(x, settings), call(x, settings))


@pytest.mark.parametrize("normalize", [1, "no", jnp.array(True)])
def test_errors(normalize):
    with pytest.raises(TypeError) as info:
        process_logits(jnp.zeros(5), normalize=normalize)
    got = type(normalize).__name__
    assert str(info.value) == f"normalize must be a bool, got {got}; pass True or False."


def test_empty_batch():
    assert process_logits(jnp.zeros((0, 5))).shape == (0, 5)
