"""`mirostat` equals its specification, and reaches its target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import HOLES, SPREADS, count_compilations, keys, make_logits, on_device, seeds
from references import mirostat as plain
from test_statistics import ALPHA, p_value, power
from test_strict_settings import enable_x64

from sampling_jax import mirostat, sample

# A state is float32 of a sum of V weights and two logarithms.
CLOSE = {"rtol": 1e-5, "atol": 1e-4}
STATES = [-3.0, 0.0, 1e-40, 1e-6, 0.5, 1.0, 3.0, 7.3, 10.0, 20.0, 30.99, 31.0, 100.0, np.inf]


def make_numbers(seed, batch):
    rng = np.random.default_rng(seed)
    choices = (STATES, [0.0, 1.0, 5.0, 20.0], [0.0, 0.1, 1.0])
    return [on_device(rng.choice(np.array(c, np.float32), batch)) for c in choices]


def assert_equal(result, expected):
    for part, dtype in zip(result, (np.float32, np.int32), strict=True):
        assert part.dtype == dtype
    np.testing.assert_array_equal(result[1], expected[1])
    np.testing.assert_allclose(result[0], expected[0], **CLOSE)


def assert_equals_reference(key, x, *numbers):
    result = mirostat(key, x, *numbers)
    assert [part.shape for part in result] == [x.shape[:-1]] * 2
    assert_equal(result, plain.mirostat(key, x, *numbers))
    return result


@given(
    keys,
    seeds,
    st.sampled_from(sorted(SPREADS)),
    st.sampled_from(sorted(HOLES)),
)
def test_equals_reference(key, seed, spread, holes):
    x = make_logits(seed, (2, 3, 300), spread, holes)
    assert_equals_reference(key, x, *make_numbers(seed, (2, 3)))


def critical_states(x, w):
    """float32 states on either side of the surprise of a token of each row."""
    states = []
    for i, (row, weights) in enumerate(zip(x, w, strict=True)):
        surprise = np.float32(np.log2(weights.sum(dtype=np.float64) / weights[i % row.size]))
        states += [[surprise + np.float32(step * 2e-7) * surprise for step in range(-4, 5)]]
    return np.array(states, np.float32)


@pytest.mark.slow
def test_states_at_the_surprise_of_a_token():
    x = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    w = [plain.reference.weights(row, np.float32(1)) for row in x]
    states = critical_states(x, w)
    sizes = [
        {plain.kept(row, weights, mu).sum() for mu in row_states}
        for row, weights, row_states in zip(x, w, states, strict=True)
    ]
    assert sum(len(size) > 1 for size in sizes) > 100  # most of the others keep one token
    x = np.repeat(x[:, None], 9, axis=1)
    # Bits that draw the last token kept in id order, or one near it.
    for key in jax.random.split(jax.random.key(0), 5):
        assert_equals_reference(key, x, states)


@pytest.mark.slow
def test_large_vocabulary():
    x = make_logits(0, (2, 70_000))
    assert_equals_reference(jax.random.key(0), x, np.array([8.0, 12.0]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float4_e2m1fn"])
def test_narrow_logits(dtype):
    x = jnp.asarray(make_logits(0, (2, 5000)), dtype)
    expected = mirostat(jax.random.key(0), x.astype(jnp.float32), 8.0)
    assert_equal(mirostat(jax.random.key(0), x, 8.0), expected)


@pytest.mark.slow
def test_numbers_broadcast():
    x = make_logits(0, (3, 4, 129))
    key = jax.random.key(0)
    expected = mirostat(key, x, np.full((3, 4), 4.0), np.full((3, 4), 2.0), np.full((3, 4), 0.3))
    for state, tau, eta in ((4, 2, 0.3), (np.full(4, 4), np.full((3, 1), 2.0), np.float16(0.3))):
        result = mirostat(key, x, state, tau, eta)
        np.testing.assert_array_equal(result[1], expected[1])
        np.testing.assert_allclose(result[0], expected[0], atol=1e-3)


@pytest.mark.slow
def test_a_large_state_draws_what_sample_draws():
    x = make_logits(0, (200, 129), "normal", "all")
    row_keys = jax.random.split(jax.random.key(0), 200)
    _, tokens = mirostat(row_keys, x, np.inf)
    np.testing.assert_array_equal(tokens, sample(row_keys, x))


@pytest.mark.slow
@pytest.mark.parametrize("state", [0.0, -1.0])
def test_the_most_likely_token_is_always_kept(state):
    x = make_logits(0, (200, 129), "bfloat16 ties", "-inf")
    _, tokens = mirostat(jax.random.key(0), x, state)
    np.testing.assert_array_equal(tokens, x.argmax(axis=1))


def test_rows_with_nothing_to_draw():
    x = np.array([[-np.inf, np.nan], [0, 0]], np.float32)
    state, token = mirostat(jax.random.key(0), x, np.array([3.0, 3.0]), 5.0, 0.5)
    assert state.tolist() == [3.0, 5.0]  # 1 bit instead of 5
    assert token[0] == -1
    assert token[1] in (0, 1)


@pytest.mark.slow
def test_a_state_that_is_nan_drops_nothing():
    x = make_logits(0, (50, 129))
    with jax.debug_nans(False):
        state, tokens = mirostat(jax.random.key(0), x, on_device(np.nan))
    assert np.isnan(state).all()
    np.testing.assert_array_equal(tokens, sample(jax.random.key(0), x))


@pytest.mark.parametrize("tau", [3.0, 5.0])
def test_the_mean_surprise_reaches_tau(tau):
    """Steps of eta add up: the mean is off by (start - end) / (eta * steps)."""
    x = -1.2 * np.log1p(np.arange(2000, dtype=np.float32))
    log2_p = np.asarray(jax.nn.log_softmax(x)) / np.log(2)
    row_keys = jax.random.split(jax.random.key(0), 2000)
    start = jnp.float32(2 * tau)
    end, tokens = jax.lax.scan(lambda state, key: mirostat(key, x, state, tau), start, row_keys)
    mean = -log2_p[tokens].mean()
    np.testing.assert_allclose(mean, tau + (start - end) / 200, rtol=1e-4)
    assert abs(mean - tau) < 0.1


ROWS, MU = 2**17, 5.0


def probabilities(mu=MU):
    """float64: all of them, and what is left of them."""
    x = np.random.default_rng(0).normal(size=40)
    p = np.exp(x) / np.exp(x).sum()
    q = np.where(-np.log2(p) > mu, 0, p)
    return p, q / q.sum()


def test_draws_follow_the_probabilities():
    p, q = probabilities()
    assert 5 < np.count_nonzero(q) < 20
    x = np.broadcast_to(np.log(p).astype(np.float32), (ROWS, p.size))
    _, tokens = mirostat(jax.random.key(0), x, MU)
    counts = np.bincount(np.asarray(tokens), minlength=p.size)
    assert p_value(counts[None], q[None]) > ALPHA


def test_effects_are_detected():
    """A temperature 8 % off, and the least likely token kept too unlikely by 15 %."""
    _, q = probabilities()
    hotter = q ** (1 / 1.08)
    rarer = np.where(q == q[q > 0].min(), 0.85 * q, q)
    for wrong in (hotter, rarer):
        assert power(q[None], (wrong / wrong.sum())[None], ROWS) > 0.99


@pytest.mark.slow
def test_one_result_however_it_is_called():
    x = make_logits(3, (6, 129), "normal", "all")
    row_keys = jax.random.split(jax.random.key(3), 6)
    rows = (row_keys, x, *make_numbers(3, 6))
    expected = mirostat(*rows)
    order = np.random.default_rng(0).permutation(6)
    shuffled = mirostat(*(a[order] for a in rows))
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")
    others = (
        jax.jit(mirostat)(*rows),
        jax.vmap(mirostat)(*rows),
        jax.lax.scan(lambda c, row: (c, mirostat(*row)), None, rows)[1],
        mirostat(jax.random.key_data(row_keys), *rows[1:]),
        [part[np.argsort(order)] for part in shuffled],
        jax.jit(jax.shard_map(mirostat, mesh=mesh, in_specs=spec, out_specs=spec))(*rows),
    )
    for other in others:
        assert_equal(other, expected)


@pytest.mark.slow
def test_new_values_do_not_recompile():
    x = on_device(make_logits(0, (2, 129)))
    key = jax.random.key(0)
    mirostat(key, x, 10.0)
    compilations = count_compilations()
    for numbers in ((6, 3, 1), (np.float64(4), np.float16(2), np.int8(0))):
        mirostat(key, x, *numbers)
    assert not compilations


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
def test_strict_settings(x64):
    x = make_logits(0, (6, 129), "normal", "all", np.float64 if x64 else np.float32)
    numbers = make_numbers(0, 6)
    expected = plain.mirostat(jax.random.key(0), x, *numbers)
    with enable_x64(x64), jax.debug_nans(True), jax.debug_key_reuse(True):
        key = jax.random.key(0)
        result = mirostat(key, x, *numbers)
        with pytest.raises(jax.errors.KeyReuseError):
            sample(key, x)
    assert_equal(result, expected)


@pytest.mark.slow
def test_gradient_is_zero_not_an_error():
    x = make_logits(0, (3, 129))

    def loss(x, state):
        state, token = mirostat(jax.random.key(0), x, state)
        return jnp.sum(state) + jnp.sum(token.astype(jnp.float32))

    by_x, by_state = jax.grad(loss, (0, 1))(x, 10.0)
    assert not np.asarray(by_x).any()
    assert by_state == 0


def test_no_rows():
    state, token = mirostat(jax.random.key(0), jnp.zeros((2, 0, 5)), 10.0)
    assert (state.shape, state.dtype) == ((2, 0), np.float32)
    assert (token.shape, token.dtype) == ((2, 0), np.int32)


X = np.zeros((2, 5), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"state": None},
            TypeError,
            "state must be a number or an array, got NoneType; convert with jnp.asarray.",
        ),
        (
            {"state": np.nan},
            ValueError,
            "state must be a number, got nan; start with 2 * tau.",
        ),
        (
            {"state": jnp.zeros(3)},
            ValueError,
            "state must broadcast to the batch shape (2,) of the logits, got shape (3,); pass a "
            "scalar or one value for each row.",
        ),
        ({"tau": -1.0}, ValueError, "tau must be >= 0 and finite, got -1.0; 5 is usual."),
        ({"tau": 1e39}, ValueError, "tau must be >= 0 and finite, got 1e+39; 5 is usual."),
        ({"eta": np.nan}, ValueError, "eta must be >= 0 and finite, got nan; 0.1 is usual."),
        ({"eta": True}, TypeError, "eta must be a real number or array, got bool; pass a float."),
        (
            {"logits": X.astype(np.int32)},
            TypeError,
            "logits must have a floating dtype, got int32; convert with "
            "logits.astype(jnp.float32).",
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
    usual = {"key": jax.random.key(0), "logits": X, "state": 10.0}
    with pytest.raises(error) as info:
        mirostat(**usual | arguments)
    assert str(info.value) == message
