"""N-gram bans and the DRY penalty: equal to searches through lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import HOLES, make_logits, on_device, seeds
from references import repeats as reference

from sampling_jax import apply_dry, apply_no_repeat_ngram

SHAPES = [(129,), (2, 3, 64)]  # of logits
LENGTH = 24  # of buffers
TEXTS = ("random", "periodic", "one token", "holes")
BREAKERS = np.array([1, -1, 500], np.int32)
shapes = st.sampled_from(SHAPES)
texts = st.sampled_from(TEXTS)
holes = st.sampled_from(sorted(HOLES))


def make_text(seed, shape, kind):
    """int32 [..., LENGTH] of few different tokens, so that much repeats, and lengths [...]."""
    rng = np.random.default_rng(seed)
    *batch, v = shape
    size = (*batch, LENGTH)
    period = rng.integers(1, 6)
    tokens = {
        "random": lambda: rng.integers(0, 3, size),
        "periodic": lambda: rng.integers(0, 4, (*batch, period))[..., np.arange(LENGTH) % period],
        "one token": lambda: np.full(size, v - 1),
        "holes": lambda: rng.choice([-1, 0, 1, v - 1, v], size),
    }[kind]()
    return tokens.astype(np.int32), rng.integers(0, LENGTH + 1, batch).astype(np.int32)


def row_text(tokens, length, v):
    """One row as a list; each id that is no token differs from all else, so it matches nothing."""
    row = tokens[: max(length, 0)].tolist()
    return [token if 0 <= token < v else -1 - i for i, token in enumerate(row)]


def cleaned(x):
    x = x.astype(np.float32)
    return np.where(np.isnan(x), np.float32(-np.inf), x)


@given(seeds, shapes, texts, holes, st.booleans())
def test_no_repeat_ngram(seed, shape, kind, holes, per_row):
    *batch, v = shape
    x = make_logits(seed, shape, "normal", holes)
    tokens, length = make_text(seed, shape, kind)
    sizes = np.random.default_rng(seed).integers(-1, 6, batch if per_row else ()).astype(np.int32)
    result = apply_no_repeat_ngram(x, tokens, jnp.asarray(length), jnp.asarray(sizes))
    expected = cleaned(x)
    for i in np.ndindex(*batch):
        n = int(np.broadcast_to(sizes, batch)[i])
        for token in reference.banned(row_text(tokens[i], length[i], v), n):
            if token >= 0:
                expected[i][token] = -np.inf
    np.testing.assert_array_equal(result, expected, strict=True)


def expected_dry(x, tokens, length, multiplier, base, allowed_length, breakers):
    """Float64, and which logits it changed."""
    *batch, v = x.shape
    result = cleaned(x).astype(np.float64)
    before = result.copy()
    breakers = np.broadcast_to(breakers, (*batch, breakers.shape[-1]))
    arrays = [np.broadcast_to(a, batch) for a in (length, multiplier, base, allowed_length)]
    for i in np.ndindex(*batch):
        n, m, b, allowed = (a[i] for a in arrays)
        if m > 0 and b >= 1:
            text = row_text(tokens[i], n, v)
            row_breakers = breakers[i].tolist()
            penalties = reference.dry(text, m, b, max(allowed, 0), row_breakers)
            for token, penalty in penalties.items():
                if token >= 0:
                    result[i][token] -= penalty
    return result, result != before


def assert_close(result, expected, changed, x):
    result = np.asarray(result)
    assert (result.dtype, result.shape) == (np.float32, x.shape)
    np.testing.assert_array_equal(result[~changed], cleaned(x)[~changed])
    # Squaring rounds up to 12 times, and a difference keeps that error.
    bound = 2e-6 * (np.abs(x[changed]) + np.abs(expected[changed]))
    assert (np.abs(result[changed] - expected[changed]) <= bound).all()


@given(seeds, shapes, texts, holes, st.booleans(), st.sampled_from(["none", "shared", "own"]))
def test_dry(seed, shape, kind, holes, per_row, kind_of_breakers):
    x = make_logits(seed, shape, "normal", holes)
    tokens, length = make_text(seed, shape, kind)
    rng = np.random.default_rng(seed)
    batch = shape[:-1] if per_row else ()
    settings = (
        rng.choice([0.0, 0.5, 0.8, 3.0, -1.0, np.nan], batch),
        rng.choice([1.0, 1.1, 1.75, 4.0, 0.5, np.nan], batch),
        rng.integers(-1, 6, batch),
    )
    breakers = {
        "none": None,
        "shared": BREAKERS,
        "own": rng.integers(-1, 4, (*shape[:-1], 1)).astype(np.int32),
    }[kind_of_breakers]
    multiplier, base = map(on_device, settings[:2])
    allowed = jnp.asarray(settings[2], jnp.int32)
    result = apply_dry(x, tokens, jnp.asarray(length), multiplier, base, allowed, breakers)
    settings = (multiplier, base, settings[2], np.zeros(0) if breakers is None else breakers)
    assert_close(result, *expected_dry(x, tokens, length, *settings), x)


def test_dry_on_long_and_extreme_matches():
    """A whole buffer of one token: the exponent ends at 50, and no penalty is infinite."""
    x, tokens = np.zeros((6, 4), np.float32), np.ones(80, np.int32)
    x[5] = np.inf
    multiplier = on_device([1, 1, 1, 1, 3e38, np.inf])
    base = on_device([1.1, 1.1, 1.1, 1e30, 1.75, np.inf])
    allowed = jnp.array([2, 40, 60, 2, 2, 2])
    result = np.asarray(apply_dry(x, tokens, 80, multiplier, base, allowed))[:, 1]
    largest = np.finfo(np.float32).max
    expected = [-(1.1**50), -(1.1**39), -(1.1**19), -largest, -largest, np.inf]
    np.testing.assert_allclose(result, expected, rtol=2e-6)
    np.testing.assert_array_equal(apply_dry(x, tokens, 80, 1.0, 1.1, 80), x)


def test_dry_by_hand():
    """The example in the comments of llama.cpp: the matches of `a b c` are 3, 2 and 1 long."""
    a, b, c, y = range(4)
    tokens = np.array([a, b, c, c, b, c, y, a, b, c])
    result = apply_dry(np.zeros(4, np.float32), tokens, 10, 1.0, 2.0, 1)
    np.testing.assert_array_equal(result, [0, -1, -4, -2])
    broken = apply_dry(np.zeros(4, np.float32), tokens, 10, 1.0, 2.0, 1, np.array([a]))
    np.testing.assert_array_equal(broken, [0, -1, -2, -2])


def call_ngram(x, tokens, length, n):
    return apply_no_repeat_ngram(x, tokens, length, n)


def call_dry(x, tokens, length, n):
    return apply_dry(x, tokens, length, 0.8, 1.75, n, BREAKERS)


@pytest.mark.parametrize("call", [call_ngram, call_dry])
def test_the_rest_of_the_buffer_is_never_read(call):
    x = make_logits(4, (6, 129))
    tokens, length = make_text(4, (6, 129), "periodic")
    beyond = np.arange(LENGTH) >= length[:, None]
    noise = np.random.default_rng(0).integers(-1, 3, tokens.shape)
    other = np.where(beyond, noise, tokens)
    n = np.int32(2)
    np.testing.assert_array_equal(call(x, other, length, n), call(x, tokens, length, n))


@pytest.mark.parametrize("spread", ["subnormal", "signed zeros", "normal"])
def test_off_changes_no_bit(spread):
    x = make_logits(0, (3, 129), spread, "-inf")
    tokens, length = np.zeros((3, LENGTH), np.int32), 9
    nan = on_device(np.nan)
    for result in (
        *(apply_no_repeat_ngram(x, tokens, length, n) for n in (None, 0, jnp.array(-1))),
        *(apply_dry(x, tokens, length, m) for m in (None, 0, on_device(-1.0), nan)),
        *(apply_dry(x, tokens, length, 1.0, base) for base in (on_device(0.9), nan)),
        apply_dry(x, tokens, 0, 1.0),
        apply_dry(x, tokens, length, 1.0, sequence_breakers=np.array([0])),
    ):
        np.testing.assert_array_equal(np.asarray(result).view(np.uint32), x.view(np.uint32))


@pytest.mark.parametrize("call", [call_ngram, call_dry])
def test_bad_traced_lengths(call):
    x = make_logits(5, (2, 129))
    tokens, _ = make_text(5, (2, 129), "periodic")
    result = call(x, tokens, jnp.array([-5, LENGTH + 5]), np.int32(1))
    expected = call(x, tokens, np.array([0, LENGTH]), np.int32(1))
    np.testing.assert_array_equal(result, expected)


def test_greedy_text_under_scan_repeats_no_ngram():
    v, steps, n = 7, 40, 3
    table = jnp.asarray(make_logits(6, (v, v)))

    @jax.jit
    def generate(tokens):
        def step(tokens, i):
            logits = apply_no_repeat_ngram(table[tokens[i - 1]], tokens, i, n)
            return tokens.at[i].set(jnp.argmax(logits).astype(jnp.int32)), None

        return jax.lax.scan(step, tokens, jnp.arange(1, steps))[0]

    text = generate(jnp.zeros(steps, jnp.int32)).tolist()
    ngrams = [tuple(text[i : i + n]) for i in range(steps - n + 1)]
    assert len(set(ngrams)) == len(ngrams)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_settings_of_any_floating_dtype(dtype):
    text = np.array([0, 1, 2, 0, 1, -1])
    for value, each in ((dtype(1.75), dtype(1.5)), (np.array([1.75], dtype), np.array(1.5, dtype))):
        result = apply_dry(np.zeros((1, 4), np.float32), text, 5, value, each, 0)
        assert result.tolist() == [[0, 0, -1.75 * 1.5**2, 0]]


def test_gradients_are_finite():
    """Also beside a finite mask, and where a power that is not used would overflow."""
    x = make_logits(0, (2, 6))
    x[1, :5] = -1e9
    tokens = np.array([0, 1, 0, 1, 4, 0, 1], np.int32)

    def loss(x, multiplier, base):
        return (apply_dry(x, tokens, 7, multiplier, base, 1) * 1e-9).sum()

    with jax.debug_nans(True):
        for base in (1.75, 1e10):
            by_x, by_multiplier, by_base = jax.grad(loss, (0, 1, 2))(x, 0.5, base)
            np.testing.assert_allclose(by_x, 1e-9)
            # Two tokens of each row follow a match of 2, one more than is allowed.
            np.testing.assert_allclose([by_multiplier, by_base], [-4e-9 * base, -2e-9], rtol=1e-5)


def test_empty_batch_and_empty_buffer():
    for call in (call_ngram, call_dry):
        assert call(jnp.zeros((0, 5)), np.zeros((0, 3), np.int32), 3, 2).shape == (0, 5)
        x = np.ones((2, 5), np.float32)
        np.testing.assert_array_equal(call(x, np.zeros((2, 0), np.int32), 0, 1), x)


X = np.zeros((2, 3, 5), np.float32)
TOKENS = np.zeros((2, 3, 4), np.int32)


@pytest.mark.parametrize("call", [apply_no_repeat_ngram, apply_dry])
@pytest.mark.parametrize(
    ("tokens", "length", "error", "message"),
    [
        (
            [1, 2],
            2,
            TypeError,
            "tokens must be an array, got list; convert with jnp.asarray.",
        ),
        (
            X,
            2,
            TypeError,
            "tokens must have an integer dtype, got float32; convert with "
            "tokens.astype(jnp.int32).",
        ),
        (
            TOKENS[0, 0, 0],
            2,
            ValueError,
            "tokens must have shape [L], or [..., L] with leading axes that broadcast to the "
            "batch shape (2, 3) of the logits, got shape (); pass one list for all rows, or one "
            "for each.",
        ),
        (
            TOKENS[:, 0],
            2,
            ValueError,
            "tokens must have shape [L], or [..., L] with leading axes that broadcast to the "
            "batch shape (2, 3) of the logits, got shape (2, 4); pass one list for all rows, or "
            "one for each.",
        ),
        (
            TOKENS,
            5,
            ValueError,
            "length must be in [0, 4], got 5; count the tokens in the buffer.",
        ),
        (
            TOKENS,
            None,
            TypeError,
            "length must be a number or an array, got NoneType; convert with jnp.asarray.",
        ),
    ],
)
def test_errors_of_texts(call, tokens, length, error, message):
    for form in (call, lambda x, *rest: jax.jit(lambda x: call(x, *rest))(x)):
        with pytest.raises(error) as info:
            form(X, tokens, length, 1)
        assert str(info.value) == message


@pytest.mark.parametrize(
    ("call", "settings", "error", "message"),
    [
        (
            apply_no_repeat_ngram,
            {"ngram_size": -1},
            ValueError,
            "ngram_size must be >= 0, got -1; None or 0 is off.",
        ),
        (
            apply_no_repeat_ngram,
            {"ngram_size": np.float32(2)},
            TypeError,
            "ngram_size must be an integer or an integer array, got float32; convert with "
            "int(ngram_size) or ngram_size.astype(jnp.int32).",
        ),
        (
            apply_dry,
            {"multiplier": -1.0},
            ValueError,
            "multiplier must be >= 0 and finite, got -1.0; None or 0 is off.",
        ),
        (
            apply_dry,
            {"multiplier": float("inf")},
            ValueError,
            "multiplier must be >= 0 and finite, got inf; None or 0 is off.",
        ),
        (
            apply_dry,
            {"multiplier": np.float32(np.inf)},
            ValueError,
            "multiplier must be >= 0 and finite, got inf; None or 0 is off.",
        ),
        (
            apply_dry,
            {"multiplier": 1, "base": np.float16(np.inf)},
            ValueError,
            "base must be >= 1 and finite, got inf; 1.75 is usual.",
        ),
        (
            apply_dry,
            {"multiplier": 1, "base": 0.5},
            ValueError,
            "base must be >= 1 and finite, got 0.5; 1.75 is usual.",
        ),
        (
            apply_dry,
            {"multiplier": 1, "allowed_length": -2},
            ValueError,
            "allowed_length must be >= 0, got -2; 2 is usual.",
        ),
        (
            apply_dry,
            {"multiplier": 1, "sequence_breakers": TOKENS[:, 0]},
            ValueError,
            "sequence_breakers must have shape [S], or [..., S] with leading axes that broadcast "
            "to the batch shape (2, 3) of the logits, got shape (2, 4); pass one list for all "
            "rows, or one for each.",
        ),
        (
            apply_dry,
            {"multiplier": 1, "sequence_breakers": (1, 2)},
            TypeError,
            "sequence_breakers must be an array, got tuple; convert with jnp.asarray.",
        ),
    ],
)
def test_errors_of_settings(call, settings, error, message):
    for form in (call, lambda x, *rest, **named: jax.jit(lambda x: call(x, *rest, **named))(x)):
        with pytest.raises(error) as info:
            form(X, TOKENS, 4, **settings)
        assert str(info.value) == message
