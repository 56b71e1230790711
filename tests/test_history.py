"""Histories and penalties: equal to loops over sets and counters, in every form of call."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import HOLES, SPREADS, make_logits, on_device, seeds
from references import history as reference

from sampling_jax import History, apply_penalties, init_history, sample, update_history

SHAPES = [(129,), (2, 3, 64)]  # of logits
LENGTH = 12  # of prompts and outputs
PENALTIES = {
    "repetition_penalty": [1.0, 1.2, 0.5, 2.0, 1e30, 3e38, 1e-30, 0.0, -1.0, np.nan, np.inf],
    "presence_penalty": [0.0, 0.5, -0.5, 2.0, 1e30, np.nan, np.inf, -np.inf],
    "frequency_penalty": [0.0, 0.1, -0.3, 2.0, 3e38, np.nan, np.inf, -np.inf],
}
NAMES = tuple(PENALTIES)
shapes = st.sampled_from(SHAPES)


def make_tokens(seed, shape):
    """int32 [..., LENGTH], some of them no token, and many of them twice."""
    rng = np.random.default_rng(seed)
    *batch, v = shape
    least, most = rng.choice([-3, 0]), rng.choice([2, v, v + 3])
    return rng.integers(least, most, (*batch, LENGTH)).astype(np.int32)


def make_penalties(seed, batch, names=NAMES):
    rng = np.random.default_rng(seed)
    return {name: on_device(rng.choice(PENALTIES[name], batch)) for name in names}


def history_of(prompt, output, v):
    history = init_history(prompt, v)
    for step in range(output.shape[-1]):
        history = update_history(history, output[..., step])
    return history


def expected_penalties(x, prompt, output, penalties):
    rows = np.ndindex(x.shape[:-1])
    values = {
        name.removesuffix("_penalty"): np.broadcast_to(value, x.shape[:-1])
        for name, value in penalties.items()
    }
    result = np.empty(x.shape, np.float32)
    with np.errstate(all="ignore"):
        for i in rows:
            row = {name: value[i] for name, value in values.items()}
            result[i] = reference.penalise(x[i], prompt[i], output[i], **row)
    return result


def assert_equal(result, expected):
    """Equal floats, except that a processor may take subnormal results for 0."""
    result = np.asarray(result)
    assert (result.dtype, result.shape) == (np.float32, expected.shape)
    normal = ~(np.abs(expected) < np.finfo(np.float32).tiny)
    np.testing.assert_array_equal(result[normal], expected[normal])
    assert (np.abs(result[~normal]) < np.finfo(np.float32).tiny).all()


@given(seeds, shapes, st.booleans())
def test_init(seed, shape, with_length):
    *batch, v = shape
    rng = np.random.default_rng(seed)
    tokens = make_tokens(seed, shape)
    lengths = rng.integers(-1, LENGTH + 2, batch).astype(np.int32)
    history = init_history(tokens, v, jnp.asarray(lengths) if with_length else None)
    assert history.prompt.shape == (*batch, -(-v // 32))
    assert history.prompt.dtype == jnp.uint32
    for i in np.ndindex(*batch):
        row = tokens[i][: max(lengths[i], 0)] if with_length else tokens[i]
        np.testing.assert_array_equal(history.prompt[i], reference.words_of(row, v))
    np.testing.assert_array_equal(history.counts, np.zeros(shape, np.uint16), strict=True)


@given(seeds, shapes, st.booleans())
def test_update(seed, shape, with_active):
    *batch, v = shape
    rng = np.random.default_rng(seed)
    output = make_tokens(seed, shape)
    active = rng.random(output.shape) < 0.7
    history = init_history(make_tokens(seed + 1, shape), v)
    before = history.prompt
    for step in range(LENGTH):
        mask = jnp.asarray(active[..., step]) if with_active else None
        history = update_history(history, output[..., step], mask)
    for i in np.ndindex(*batch):
        row = output[i][active[i]] if with_active else output[i]
        np.testing.assert_array_equal(history.counts[i], reference.counts_of(row, v))
    assert history.counts.dtype == jnp.uint16
    assert history.prompt is before


@given(seeds, shapes)
def test_update_by_several_tokens(seed, shape):
    """They count as they do one after another."""
    *batch, v = shape
    output = make_tokens(seed, shape)
    active = np.random.default_rng(seed).random(batch) < 0.7
    history = init_history(output, v)
    for _ in range(2):
        at_once = update_history(history, output, jnp.asarray(active))
        for step in range(LENGTH):
            history = update_history(history, output[..., step], jnp.asarray(active))
        np.testing.assert_array_equal(at_once.counts, history.counts, strict=True)


def test_counts_saturate():
    history = History(jnp.zeros((2, 1), jnp.uint32), jnp.full((2, 3), 65533, jnp.uint16))
    for _ in range(4):
        history = update_history(history, jnp.array([0, 2]))
    assert history.counts.tolist() == [[65535, 65533, 65533], [65533, 65533, 65535]]
    history = update_history(history, jnp.array([[1, 1, 1, 0], [0, 2, -1, 1]]))
    assert history.counts.tolist() == [[65535, 65535, 65533], [65534, 65534, 65535]]
    many = np.tile(np.repeat([0, 1], 66000), (2, 1))
    assert update_history(history, many).counts.tolist() == [[65535, 65535, 65533], [65535] * 3]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_tokens_of_any_integer_dtype(dtype):
    limits = np.iinfo(dtype)
    tokens = np.array([3, 0, limits.max, limits.min, 3], dtype)
    v = 300  # more than an int8 holds
    expected = reference.words_of(tokens, v)
    np.testing.assert_array_equal(init_history(tokens, v).prompt, expected)
    np.testing.assert_array_equal(init_history(jnp.asarray(tokens[:2]), v).prompt[0], 9)
    history = update_history(init_history(tokens[:, None], v), tokens)
    assert history.counts.sum() == sum(0 <= token < v for token in tokens.tolist())


@given(
    seeds,
    shapes,
    st.sampled_from(sorted(SPREADS)),
    st.sampled_from(sorted(HOLES)),
    st.sampled_from([NAMES, NAMES[:1], NAMES[1:2], NAMES[2:]]),
    st.booleans(),
)
def test_penalties(seed, shape, spread, holes, names, per_row):
    x = make_logits(seed, shape, spread, holes)
    prompt, output = make_tokens(seed, shape), make_tokens(seed + 1, shape)
    penalties = make_penalties(seed, shape[:-1] if per_row else (), names)
    result = apply_penalties(x, history_of(prompt, output, shape[-1]), **penalties)
    assert not np.isnan(result).any()
    assert_equal(result, expected_penalties(x, prompt, output, penalties))


@pytest.mark.parametrize("spread", ["subnormal", "signed zeros", "normal"])
def test_off_changes_no_bit(spread):
    x = make_logits(0, (6, 129), spread, "-inf")
    history = history_of(make_tokens(0, x.shape), make_tokens(1, x.shape), 129)
    nan = on_device(np.nan)
    for off in (
        {},
        dict(zip(NAMES, (1.0, 0.0, 0.0), strict=True)),
        dict(zip(NAMES, (on_device(0.0), nan, nan), strict=True)),
        dict(zip(NAMES, (on_device([1, 0, -1, np.nan, 1, 1]), 0, 0), strict=True)),
    ):
        result = np.asarray(apply_penalties(x, history, **off))
        np.testing.assert_array_equal(result.view(np.uint32), x.view(np.uint32))


def test_rows_are_off_one_by_one():
    x = make_logits(1, (2, 129))
    history = history_of(make_tokens(0, x.shape), make_tokens(1, x.shape), 129)
    penalties = (on_device([1.0, 1.5]), on_device([0.0, 1.0]), on_device([0.0, 1.0]))
    result = np.asarray(apply_penalties(x, history, *penalties))
    np.testing.assert_array_equal(result[0], x[0])
    assert (result[1] != x[1]).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_computed_in_float32(dtype):
    x = jnp.asarray(make_logits(2, (5, 129)), dtype)
    prompt, output = make_tokens(2, x.shape), make_tokens(3, x.shape)
    result = apply_penalties(x, history_of(prompt, output, 129), 1.3, 0.1, 0.1)
    wide = np.asarray(x.astype(jnp.float32))
    penalties = dict(zip(NAMES, (1.3, 0.1, 0.1), strict=True))
    assert_equal(result, expected_penalties(wide, prompt, output, penalties))


def test_scan_equals_a_loop_over_lists():
    """Greedy text of a toy model under penalties, as a host would generate it."""
    v, steps = 129, 30
    table = make_logits(7, (v, v))
    prompt = make_tokens(8, (4, v))
    names = dict(zip(NAMES, (1.3, 0.2, 0.1), strict=True))

    @jax.jit
    def generate(last):
        def step(carry, _):
            last, history = carry
            logits = apply_penalties(jnp.asarray(table)[last], history, **names)
            tokens = sample(jax.random.key(0), logits, 0.0)
            return (tokens, update_history(history, tokens)), tokens

        return jax.lax.scan(step, (last, init_history(prompt, v)), length=steps)[1].T

    first = np.arange(4, dtype=np.int32)
    result = np.asarray(generate(first))
    for row in range(4):
        output = [int(first[row])]
        for _ in range(steps):
            penalties = {name.removesuffix("_penalty"): value for name, value in names.items()}
            logits = reference.penalise(table[output[-1]], prompt[row], output[1:], **penalties)
            output.append(int(np.argmax(logits)))
        assert result[row].tolist() == output[1:]


def test_numpy_leaves():
    """As they come from a file, with or without jit."""
    history, tokens = init_history(jnp.array([[1, 2], [3, 3]]), 40), np.array([4, 5])
    expected = update_history(history, tokens)
    loaded = jax.tree.map(np.asarray, history)
    for context in (contextlib.nullcontext(), jax.disable_jit()):
        with context:
            result = update_history(loaded, tokens)
        jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_empty_batch_and_empty_prompt():
    history = init_history(np.zeros((0, 3), np.int32), 5)
    history = update_history(history, np.zeros(0, np.int32))
    assert apply_penalties(jnp.zeros((0, 5)), history, 1.5, 1.0, 1.0).shape == (0, 5)
    assert init_history(np.zeros((2, 0), np.int32), 40).prompt.tolist() == [[0, 0], [0, 0]]


def test_gradients_are_finite():
    x = make_logits(9, (4, 129), "normal", "-inf")
    history = history_of(make_tokens(0, x.shape), make_tokens(1, x.shape), 129)

    def loss(x, penalties):
        result = apply_penalties(x, history, *penalties)
        return jnp.sum(jnp.where(jnp.isfinite(result), result, 0))

    gradients = jax.grad(loss, (0, 1))(x, (1.3, 0.2, 0.1))
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))


X = np.zeros((2, 3, 5), np.float32)
TOKENS = np.zeros((2, 3, 4), np.int32)
HISTORY = init_history(TOKENS, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: init_history([1, 2], 5),
            TypeError,
            "prompt_tokens must be an array, got list; convert with jnp.asarray.",
        ),
        (
            lambda: init_history(X, 5),
            TypeError,
            "prompt_tokens must have an integer dtype, got float32; convert with "
            "prompt_tokens.astype(jnp.int32).",
        ),
        (
            lambda: init_history(np.int32(1), 5),
            ValueError,
            "prompt_tokens must have shape [..., L], got shape (); add the axis of the tokens.",
        ),
        (
            lambda: init_history(TOKENS, 5.0),
            TypeError,
            "vocab_size must be an integer, got float; pass a Python int.",
        ),
        (
            lambda: init_history(TOKENS, 0),
            ValueError,
            "vocab_size must be in [1, 1048576], got 0; pass logits.shape[-1].",
        ),
        (
            lambda: init_history(TOKENS, 5, 2.0),
            TypeError,
            f"prompt_length must be an integer or an integer array, got {jnp.result_type(float)}; "
            "convert with int(prompt_length) or prompt_length.astype(jnp.int32).",
        ),
        (
            lambda: init_history(TOKENS, 5, np.zeros(2, np.int32)),
            ValueError,
            "prompt_length must broadcast to the batch shape (2, 3) of the prompt tokens, got "
            "shape (2,); pass a scalar or one value for each row.",
        ),
        (
            lambda: init_history(TOKENS, 5, -1),
            ValueError,
            "prompt_length must be >= 0, got -1; None is L.",
        ),
        (
            lambda: update_history(tuple(HISTORY), TOKENS[..., 0]),
            TypeError,
            "history must be a History, got tuple; make one with init_history(prompt_tokens, "
            "vocab_size).",
        ),
        (
            lambda: update_history(HISTORY, TOKENS[0]),
            ValueError,
            "tokens must have the batch shape (2, 3) of the history, or one more axis, got shape "
            "(3, 4); pass one token for each row, or as many for each.",
        ),
        (
            lambda: update_history(HISTORY, TOKENS[..., None]),
            ValueError,
            "tokens must have the batch shape (2, 3) of the history, or one more axis, got shape "
            "(2, 3, 4, 1); pass one token for each row, or as many for each.",
        ),
        (
            lambda: update_history(HISTORY, TOKENS[..., 0], 1),
            TypeError,
            f"active must be a bool or a boolean array, got {jnp.result_type(int)}; convert with "
            "bool(active) or active.astype(bool).",
        ),
        (
            lambda: update_history(HISTORY, TOKENS[..., 0], np.ones(2, bool)),
            ValueError,
            "active must broadcast to the batch shape (2, 3) of the history, got shape (2,); pass "
            "a scalar or one value for each row.",
        ),
        (
            lambda: update_history(History(None, HISTORY.counts), TOKENS[..., 0]),
            ValueError,
            "history must have prompt uint32 [..., ceil(V / 32)] and counts uint16 [..., V], got "
            "NoneType () and uint16 (2, 3, 5); make it with init_history(prompt_tokens, "
            "vocab_size).",
        ),
        (
            lambda: apply_penalties(X, History(HISTORY.prompt[0], HISTORY.counts)),
            ValueError,
            "history must have prompt uint32 [..., ceil(V / 32)] and counts uint16 [..., V], got "
            "uint32 (3, 1) and uint16 (2, 3, 5); make it with init_history(prompt_tokens, "
            "vocab_size).",
        ),
        (
            lambda: apply_penalties(X, None),
            TypeError,
            "history must be a History, got NoneType; make one with init_history(prompt_tokens, "
            "vocab_size).",
        ),
        (
            lambda: apply_penalties(X, init_history(TOKENS, 6)),
            ValueError,
            "history must have the shape (2, 3, 5) of the logits, got (2, 3, 6); make it with "
            "init_history(prompt_tokens, logits.shape[-1]).",
        ),
        (
            lambda: apply_penalties(X, HISTORY, repetition_penalty=0),
            ValueError,
            "repetition_penalty must be > 0 and finite, got 0; None or 1 is off.",
        ),
        (
            lambda: apply_penalties(X, HISTORY, repetition_penalty=np.array([1.0, np.nan, 2.0])),
            ValueError,
            "repetition_penalty must be > 0 and finite, got [ 1. nan  2.]; None or 1 is off.",
        ),
        (
            lambda: apply_penalties(X, HISTORY, presence_penalty=float("inf")),
            ValueError,
            "presence_penalty must be finite, got inf; None or 0 is off.",
        ),
        (
            lambda: apply_penalties(X, HISTORY, frequency_penalty=float("nan")),
            ValueError,
            "frequency_penalty must be finite, got nan; None or 0 is off.",
        ),
        (
            lambda: apply_penalties(X, HISTORY, frequency_penalty="1"),
            TypeError,
            "frequency_penalty must be a number or an array, got str; convert with jnp.asarray.",
        ),
    ],
)
def test_errors(call, error, message):
    for form in (call, lambda: jax.jit(lambda _: call())(0)):
        with pytest.raises(error) as info:
            form()
        assert str(info.value) == message
