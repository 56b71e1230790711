"""Biases, bitmasks, forbidden tokens and minimum lengths: equal to loops over ids."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import HOLES, SPREADS, make_logits, on_device, seeds
from references import constraints as reference

from sampling_jax import (
    apply_logit_bias,
    apply_min_length,
    apply_token_bitmask,
    sample,
    suppress_tokens,
)

SHAPES = [(129,), (2, 3, 64)]
shapes = st.sampled_from(SHAPES)
spreads = st.sampled_from(sorted(SPREADS))
holes = st.sampled_from(sorted(HOLES))


def make_ids(seed, shape, n=9, shared=False):
    """Some outside the vocabulary, and some twice."""
    *batch, v = shape
    rng = np.random.default_rng(seed)
    size = (n,) if shared else (*batch, n)
    return rng.integers(-2, rng.choice([2, v + 3]), size).astype(np.int32)


def each_row(x, *others):
    """Rows of a clean copy of the logits, to be changed in place, beside those of the others."""
    result = np.where(np.isnan(x), np.float32(-np.inf), x)
    batch = x.shape[:-1]
    others = [np.broadcast_to(other, (*batch, other.shape[-1])) for other in others]
    return result, [(result[i], *(other[i] for other in others)) for i in np.ndindex(*batch)]


@given(seeds, shapes, spreads, holes, st.booleans())
def test_suppress_tokens(seed, shape, spread, holes, shared):
    x, ids = make_logits(seed, shape, spread, holes), make_ids(seed, shape, shared=shared)
    active = np.random.default_rng(seed).random(() if shared else shape[:-1]) < 0.7
    expected, rows = each_row(x, ids, np.asarray(active)[..., None])
    for row, tokens, on in rows:
        row[[token for token in tokens if on and 0 <= token < len(row)]] = -np.inf
    result = suppress_tokens(x, ids, jnp.asarray(active))
    np.testing.assert_array_equal(np.asarray(result).view(np.uint32), expected.view(np.uint32))
    if active.all():
        np.testing.assert_array_equal(suppress_tokens(x, ids), expected)


@given(seeds, shapes, holes, st.booleans())
def test_min_length(seed, shape, holes, per_row):
    x, ids = make_logits(seed, shape, "normal", holes), make_ids(seed, shape)
    rng = np.random.default_rng(seed)
    length, least = rng.integers(-1, 4, (2, *(shape[:-1] if per_row else ())))
    expected, rows = each_row(x, ids, length[..., None], least[..., None])
    for row, tokens, n, m in rows:
        row[[token for token in tokens if n < m and 0 <= token < len(row)]] = -np.inf
    result = apply_min_length(x, jnp.asarray(length), jnp.asarray(least), ids)
    np.testing.assert_array_equal(result, expected, strict=True)
    np.testing.assert_array_equal(apply_min_length(x, 0, None, ids), each_row(x)[0])


@given(seeds, shapes, spreads, holes, st.sampled_from([-1, 0, 1]), st.booleans())
def test_token_bitmask(seed, shape, spread, holes, extra, shared):
    *batch, v = shape
    x = make_logits(seed, shape, spread, holes)
    size = (-(-v // 32) + extra,)
    words = np.random.default_rng(seed).integers(0, 2**32, size if shared else (*batch, *size))
    words = words.astype(np.uint32)
    expected, rows = each_row(x, words)
    for row, row_words in rows:
        row[[token for token in range(v) if not reference.allows(row_words, token)]] = -np.inf
    for mask in (words, words.view(np.int32)):
        result = np.asarray(apply_token_bitmask(x, mask))
        np.testing.assert_array_equal(result.view(np.uint32), expected.view(np.uint32))


def make_bias(seed, ids):
    rng = np.random.default_rng(seed)
    choices = [0.0, 1.0, -2.5, 100.0, -np.inf, np.inf, np.nan, 3e38, -3e38]
    return rng.choice(np.array(choices, np.float32), ids.shape)


@given(seeds, shapes, holes, st.booleans())
def test_logit_bias(seed, shape, holes, shared):
    x, ids = make_logits(seed, shape, "normal", holes), make_ids(seed, shape, shared=shared)
    values = make_bias(seed, ids)
    result = np.asarray(apply_logit_bias(x, ids, on_device(values)))
    assert (result.dtype, result.shape) == (np.float32, x.shape)
    expected, rows = each_row(x, ids, values)
    for row, tokens, row_values in rows:
        row[:] = reference.bias(row, tokens, row_values)
    masked, mask_rows = each_row(np.where(x > -np.inf, x, -np.inf), ids, values)
    for row, tokens, row_values in mask_rows:
        row[[t for t in tokens[row_values == -np.inf] if 0 <= t < len(row)]] = -np.inf
    assert (result[masked == -np.inf] == -np.inf).all()
    assert np.isfinite(result[np.isfinite(x) & np.isfinite(expected)]).all()
    # Where a sum of huge numbers leaves float32, its order decides which bound it is at.
    usual = np.abs(expected) < 1e38
    np.testing.assert_allclose(result[usual], expected[usual], rtol=1e-6)
    assert not np.isnan(result).any()


def test_bias_of_distinct_tokens_is_one_addition():
    x = make_logits(1, (6, 129))
    rng = np.random.default_rng(1)
    ids = rng.permuted(np.tile(np.arange(129), (6, 1)), axis=1)[:, :40]
    values = rng.normal(size=ids.shape).astype(np.float32)
    expected = x.copy()
    np.put_along_axis(expected, ids, np.take_along_axis(x, ids, 1) + values, 1)
    np.testing.assert_array_equal(apply_logit_bias(x, ids, values), expected)


def test_padding_changes_no_bit():
    for spread in ("subnormal", "signed zeros"):
        x = make_logits(0, (3, 129), spread, "-inf")
        ids = np.array([-1, 129, -(2**31), 2**31 - 1], np.int32)
        for result in (
            apply_logit_bias(x, ids, np.full(4, -np.inf, np.float32)),
            suppress_tokens(x, ids),
            suppress_tokens(x, np.array([1, 2]), False),
            apply_min_length(x, 5, 5, np.array([1, 2])),
            apply_token_bitmask(x, np.full(5, -1, np.int32)),
        ):
            np.testing.assert_array_equal(np.asarray(result).view(np.uint32), x.view(np.uint32))


def test_ids_beyond_32_bits_are_padding():
    x = np.zeros(4, np.float32)
    assert suppress_tokens(x, np.array([2**32 + 1, 2])).tolist() == [0, 0, -np.inf, 0]
    assert suppress_tokens(x, np.array([2**64 - 1, 2], np.uint64)).tolist() == [0, 0, -np.inf, 0]


def test_infinite_bias_takes_all_and_never_what_is_masked():
    x = make_logits(2, (4, 129))
    x[2:, 7] = -np.inf
    result = apply_logit_bias(x, np.array([7]), np.array([np.inf], np.float32))
    tokens = sample(jax.random.key(0), result)
    assert (tokens[:2] == 7).all()
    assert (tokens[2:] != 7).all()


def test_empty_batch_and_empty_ids():
    none = np.zeros(0, np.int32)
    for call in (
        lambda x: apply_logit_bias(x, none, none.astype(np.float32)),
        lambda x: suppress_tokens(x, none),
        lambda x: apply_min_length(x, 0, 1, none),
    ):
        assert call(jnp.zeros((0, 5))).shape == (0, 5)
        assert call(jnp.ones((2, 5))).tolist() == [[1] * 5] * 2
    assert apply_token_bitmask(jnp.zeros((0, 5)), none).shape == (0, 5)
    assert (apply_token_bitmask(jnp.zeros((2, 5)), none) == -jnp.inf).all()


class Bytes:
    """A tokenizer for llguidance: every byte, some words of JSON, and the end of the text."""

    eos_token_id = 0
    bos_token_id = None
    special_token_ids = (0,)
    tokens = (b"<end>", *(bytes([i]) for i in range(256)), b'{"', b'":', b"true", b"null", b" ")

    def __call__(self, text):
        return [1 + byte for byte in bytes(text)]


@pytest.mark.slow
@pytest.mark.parametrize("beyond", [0, 1, 50])
def test_bitmask_allows_what_llguidance_allows(beyond):
    """Random texts under a JSON grammar: what we keep is what the package's own kernel keeps."""
    llguidance = pytest.importorskip("llguidance")
    kernels = pytest.importorskip("llguidance.numpy")
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [True, None, 12]}, "b": {"type": "string", "maxLength": 5}},
        "required": ["a", "b"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    wrapper = llguidance.TokenizerWrapper(Bytes())
    tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=len(Bytes.tokens))
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
    v = len(Bytes.tokens) + beyond  # models pad their vocabulary
    bitmask = kernels.allocate_token_bitmask(1, len(Bytes.tokens))
    for seed in range(5):
        matcher, text = llguidance.LLMatcher(tokenizer, grammar), []
        while not matcher.is_stopped():
            kernels.fill_next_token_bitmask(matcher, bitmask)
            x = make_logits(seed + len(text), (1, v))
            expected = x.copy()
            kernels.apply_token_bitmask_inplace(expected, bitmask)
            result = apply_token_bitmask(x, bitmask)
            np.testing.assert_array_equal(result, expected)
            text += sample(jax.random.key(seed + 1000 * len(text)), result).tolist()
            assert matcher.consume_token(text[-1])
        json.loads(tokenizer.decode_bytes([token for token in text if token != Bytes.eos_token_id]))


X = np.zeros((2, 3, 5), np.float32)
IDS = np.zeros(4, np.int32)
BIAS = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: apply_logit_bias(X, [1], BIAS),
            TypeError,
            "ids must be an array, got list; convert with jnp.asarray.",
        ),
        (
            lambda: apply_logit_bias(X, BIAS, BIAS),
            TypeError,
            "ids must have an integer dtype, got float32; convert with ids.astype(jnp.int32).",
        ),
        (
            lambda: apply_logit_bias(X, IDS, IDS),
            TypeError,
            "values must have a floating dtype, got int32; convert with "
            "values.astype(jnp.float32).",
        ),
        (
            lambda: apply_logit_bias(X, IDS, BIAS[:3]),
            ValueError,
            "values must have the shape (4,) of ids, got shape (3,); pass one value for each id.",
        ),
        (
            lambda: apply_logit_bias(X, IDS[:1], np.array([np.nan])),
            ValueError,
            "values must be numbers, got [nan]; -inf bans a token.",
        ),
        (
            lambda: apply_token_bitmask(X, np.zeros((2, 1), np.int32)),
            ValueError,
            "bitmask must have shape [W], or [..., W] with leading axes that broadcast to the "
            "batch shape (2, 3) of the logits, got shape (2, 1); pass one list for all rows, or "
            "one for each.",
        ),
        (
            lambda: apply_token_bitmask(X, np.zeros(1, np.int64)),
            TypeError,
            "bitmask must have dtype int32 or uint32, got int64; pack 32 tokens into each word.",
        ),
        (
            lambda: apply_token_bitmask(X, np.zeros(5, bool)),
            TypeError,
            "bitmask must have dtype int32 or uint32, got bool; pack 32 tokens into each word.",
        ),
        (
            lambda: suppress_tokens(X, IDS[0]),
            ValueError,
            "ids must have shape [n], or [..., n] with leading axes that broadcast to the batch "
            "shape (2, 3) of the logits, got shape (); pass one list for all rows, or one for "
            "each.",
        ),
        (
            lambda: suppress_tokens(X, IDS, np.ones(3)),
            TypeError,
            "active must be a bool or a boolean array, got float64; convert with bool(active) or "
            "active.astype(bool).",
        ),
        (
            lambda: apply_min_length(X, 1.0, 2, IDS),
            TypeError,
            f"length must be an integer or an integer array, got {jnp.result_type(float)}; "
            "convert with int(length) or length.astype(jnp.int32).",
        ),
        (
            lambda: apply_min_length(X, 1, -2, IDS),
            ValueError,
            "min_length must be >= 0, got -2; count tokens.",
        ),
        (
            lambda: apply_min_length(X, 1, 2, 3),
            TypeError,
            "stop_tokens must be an array, got int; convert with jnp.asarray.",
        ),
    ],
)
def test_errors(call, error, message):
    for form in (call, lambda: jax.jit(lambda _: call())(0)):
        with pytest.raises(error) as info:
            form()
        assert str(info.value) == message
