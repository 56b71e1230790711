"""Typical, epsilon, eta, n-sigma and XTC filters: what they keep equals their specifications."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import HOLES, SPREADS, few_logits, make_logits, on_device, real_logits, seeds
from references import truncation
from test_strict_settings import enable_x64

from sampling_jax import (
    apply_epsilon_cutoff,
    apply_eta_cutoff,
    apply_top_n_sigma,
    apply_typical_p,
    apply_xtc,
    process_logits,
    reference,
    sample,
)

SHARES = [0.0, 1e-9, 3e-4, 0.02, 0.1, 0.3, 0.5, 0.9, 1 - 2**-24, 1.0, 2.0, -1.0, np.nan]
SIGMAS = [0.0, 1e-3, 0.5, 1.0, 2.0, 3.0, 50.0, np.inf, -1.0, np.nan]
FILTERS = {
    "typical_p": (apply_typical_p, truncation.typical_p, SHARES),
    "epsilon_cutoff": (apply_epsilon_cutoff, truncation.epsilon_cutoff, SHARES),
    "eta_cutoff": (apply_eta_cutoff, truncation.eta_cutoff, SHARES),
    "top_n_sigma": (apply_top_n_sigma, truncation.top_n_sigma, SIGMAS),
}
every_filter = pytest.mark.parametrize("name", FILTERS)


def expected_of(rule, x, values):
    """Row by row, in NumPy."""
    clean = reference.clean(x)
    raw = np.where(np.isnan(x), -np.inf, x).astype(np.float32)
    keep = np.zeros(x.shape, bool)
    for i in np.ndindex(x.shape[:-1]):
        keep[i] = rule(clean[i], values[i])
    return np.where(keep, raw, -np.inf)


def choose(seed, values, batch):
    return np.random.default_rng(seed).choice(np.array(values, np.float32), batch)


@every_filter
@given(few_logits, seeds)
def test_each_filter_is_its_specification(name, x, seed):
    apply, rule, values = FILTERS[name]
    chosen = choose(seed, values, x.shape[:-1])
    result = np.asarray(apply(x, on_device(chosen)))
    np.testing.assert_array_equal(result, expected_of(rule, x, chosen))


@pytest.mark.slow
@every_filter
def test_real_logits(name):
    apply, rule, values = FILTERS[name]
    x = real_logits()
    for value in values[1:6]:
        expected = expected_of(rule, x, np.full(8, value, np.float32))
        np.testing.assert_array_equal(apply(x, value), expected)
        dropped = np.sum(expected == -np.inf)
        assert dropped > 0


@given(few_logits, seeds)
def test_xtc_is_the_mixture(x, seed):
    batch = x.shape[:-1]
    threshold, probability = choose(seed, SHARES, batch), choose(seed + 1, SHARES, batch)
    result = np.asarray(apply_xtc(x, on_device(threshold), on_device(probability)))
    clean, raw = reference.clean(x), np.where(np.isnan(x), -np.inf, x).astype(np.float32)
    for i in np.ndindex(batch):
        change = truncation.xtc(clean[i], threshold[i], probability[i])
        row = raw[i]
        if np.any(change[row == np.inf]):
            row = np.where(row == np.inf, np.float32(0), -np.inf)
        gone = change == -np.inf
        with np.errstate(invalid="ignore"):
            expected = np.where(gone, -np.inf, row + np.where(gone, 0, change))
        np.testing.assert_allclose(result[i], expected, rtol=2e-6, atol=2e-6)
        np.testing.assert_array_equal(result[i][change == 0], row[change == 0])


def test_xtc_in_closed_form():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    for q in (0.25, 1.0):
        mixture = np.asarray(jax.nn.softmax(apply_xtc(np.log(p, dtype=np.float32), 0.15, q)))
        excluded = np.array([0, 0, 0.2, 0.1]) / 0.3
        np.testing.assert_allclose(mixture, (1 - q) * p + q * excluded, atol=1e-6)
    # A single top choice stays, and so do ties of which none reaches the threshold.
    for values, bound in ((p, 0.35), (np.array([0.4, 0.4, 0.2]), 0.45)):
        x = np.log(values, dtype=np.float32)
        np.testing.assert_array_equal(apply_xtc(x, bound, 1.0), x)
    # Of ties, the last by id is the least likely.
    ties = apply_xtc(np.zeros(4, np.float32), 0.2, 1.0)
    assert (np.asarray(ties) > -np.inf).tolist() == [False, False, False, True]
    # +inf shares all the mass, and a sum with it would change nothing.
    infinite = np.array([np.inf, 0, np.inf, -np.inf], np.float32)
    for q in (0.5, 1.0):
        mixture = jax.nn.softmax(apply_xtc(infinite, 0.2, q))
        np.testing.assert_allclose(mixture, [(1 - q) / 2, 0, (1 + q) / 2, 0], atol=1e-6)


CALLS = {name: apply for name, (apply, _, _) in FILTERS.items()} | {
    "xtc": lambda x, p: apply_xtc(x, p, 0.5)
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@pytest.mark.slow
@every_call
def test_every_form_of_call(call):
    x = make_logits(0, (4, 3, 129), "bfloat16 ties", "nan")
    value = np.linspace(0.02, 0.6, 12, dtype=np.float32).reshape(4, 3)
    expected = np.asarray(call(x, value))
    # XTC takes logarithms, which compilers round in their own ways.
    same = np.testing.assert_array_equal
    if call is CALLS["xtc"]:
        same = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # noqa: E731
    for form in (jax.jit(call), jax.vmap(call), jax.vmap(jax.vmap(call))):
        same(form(x, value), expected)
    same(jax.lax.map(lambda row: call(*row), (x, value)), expected)
    same(call(x[1, 2], value[1, 2]), expected[1, 2])
    same(jax.vmap(call, (0, None))(x, 0.3), call(x, 0.3))
    assert call(x[:0], 0.3).shape == (0, 3, 129)
    x = make_logits(0, (4, 3, 129), "bfloat16 ties", "-inf")
    expected = np.asarray(call(x, value))
    with enable_x64(True), jax.debug_nans(True):
        same(call(x, value), expected)
    half = jnp.asarray(x, jnp.bfloat16)
    same(call(half, value), call(half.astype(jnp.float32), value))


@pytest.mark.slow
@every_call
def test_a_new_value_compiles_nothing(call):
    traces = 0

    @jax.jit
    def traced(x, value):
        nonlocal traces
        traces += 1
        return call(x, value)

    x = make_logits(0, (2, 129))
    for value in (0.1, 0.2, 0.3):
        traced(x, value)
    assert traces == 1


@pytest.mark.slow
@every_call
def test_mesh_of_rows(call):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")
    x, value = make_logits(3, (8, 129)), np.linspace(0.05, 0.9, 8, dtype=np.float32)
    mapped = jax.jit(jax.shard_map(call, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_allclose(mapped(x, value), call(x, value), atol=1e-6)
    alone = jax.shard_map(lambda v: call(x[:2], v), mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(jax.jit(alone)(value)[:2], call(x[:2], value[:2]), atol=1e-6)


@given(st.sampled_from(sorted(SPREADS)), st.sampled_from(sorted(HOLES)), seeds)
def test_off_is_the_identity(spread, holes, seed):
    x = make_logits(seed, (5, 129), spread, holes)
    raw = np.where(np.isnan(x), -np.inf, x)
    for result in (
        *(apply(x, None) for apply, _, _ in FILTERS.values()),
        apply_typical_p(x, 1.0),
        apply_epsilon_cutoff(x, 0.0),
        apply_eta_cutoff(x, 0.0),
        apply_top_n_sigma(x, 0.0),
        apply_xtc(x, None, 0.5),
        apply_xtc(x, 0.1, None),
        apply_xtc(x, 0.1, 0.0),
        apply_xtc(x, 0.0, 0.5),
        apply_xtc(x, 0.6, 1.0) if holes == "none" else raw,
    ):
        np.testing.assert_array_equal(result, raw)


@pytest.mark.slow
def test_gradients_pass_through_what_is_kept():
    x = jnp.asarray(make_logits(1, (129,), "normal", "-inf"))
    for call in CALLS.values():
        kept = call(x, 0.3) > -jnp.inf
        gradient = jax.grad(lambda x, call=call, kept=kept: jnp.where(kept, call(x, 0.3), 0).sum())(
            x
        )
        np.testing.assert_array_equal(gradient, kept.astype(np.float32))


@pytest.mark.slow
def test_the_filters_draw_what_they_keep():
    """Where sample takes the filtered logits, nothing dropped comes back."""
    x = make_logits(2, (64, 129))
    for call in CALLS.values():
        result = process_logits(call(x, 0.2), 0.7, top_p=0.95)
        tokens = sample(jax.random.key(0), call(x, 0.2), 0.7, top_p=0.95)
        assert (jnp.take_along_axis(result, tokens[:, None], 1) > -jnp.inf).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: apply_typical_p(x, 1.5),
            r"typical_p must be in \[0, 1\], got 1.5; None or 1 is off",
        ),
        (lambda x: apply_epsilon_cutoff(x, -0.1), r"epsilon must be in \[0, 1\], got -0.1; None"),
        (lambda x: apply_eta_cutoff(x, np.nan), r"epsilon must be in \[0, 1\], got nan; None or 0"),
        (lambda x: apply_top_n_sigma(x, np.nan), "top_n_sigma must be a number, got nan; None or"),
        (lambda x: apply_xtc(x, 0.1, 2.0), r"xtc_probability must be in \[0, 1\], got 2.0"),
        (lambda x: apply_xtc(x, 2.0, 0.1), r"xtc_threshold must be in \[0, 1\], got 2.0"),
        (
            lambda x: apply_typical_p(x, np.ones(3, np.float32)),
            r"typical_p must broadcast to the batch shape \(2,\) of the logits, got shape \(3,\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 5), np.float32))


def test_wrong_types():
    with pytest.raises(TypeError, match="typical_p must be a number or an array, got str"):
        apply_typical_p(np.zeros(5, np.float32), "most")
    with pytest.raises(TypeError, match="logits must have a floating dtype, got int32"):
        apply_epsilon_cutoff(np.zeros(5, np.int32), 0.1)
