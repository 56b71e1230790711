"""What is refused, and with which words."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import on_device

import sampling_jax
from sampling_jax import (
    apply_top_n_sigma,
    init_history,
    mirostat,
    process_logits,
    reference,
    sample,
)

KEY = jax.random.key(0)
X = np.zeros((2, 3, 5), np.float32)


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "logits must be an array, got list; convert with jnp.asarray."),
        (
            SimpleNamespace(shape=(2, 5), dtype="torch.float32"),
            TypeError,
            "logits must be an array, got SimpleNamespace; convert with jnp.asarray.",
        ),
        (
            np.zeros((2, 5), np.int32),
            TypeError,
            "logits must have a floating dtype, got int32; convert with "
            "logits.astype(jnp.float32).",
        ),
        (
            KEY,
            TypeError,
            "logits must have a floating dtype, got key<fry>; pass the key first.",
        ),
        (
            np.zeros((2, 5), ">f4"),
            TypeError,
            "logits must have a floating dtype, got >f4; convert with logits.astype(jnp.float32).",
        ),
        (
            np.float32(0),
            ValueError,
            "logits must have shape [..., V], got shape (); add the vocabulary axis.",
        ),
        (
            np.zeros((2, 0), np.float32),
            ValueError,
            "logits must have 1 to 1048576 tokens in their last axis, got shape (2, 0); put the "
            "vocabulary last.",
        ),
        (
            np.zeros(2**20 + 1, np.float32),
            ValueError,
            "logits must have 1 to 1048576 tokens in their last axis, got shape (1048577,); put "
            "the vocabulary last.",
        ),
    ],
)
def test_logits(logits, error, message):
    for call in (lambda: sample(KEY, logits), lambda: process_logits(logits)):
        with pytest.raises(error) as info:
            call()
        assert str(info.value) == message


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"temperature": "1"},
            TypeError,
            "temperature must be a number or an array, got str; convert with jnp.asarray.",
        ),
        (
            {"temperature": sampling_jax.SamplingParams.stack([{}])},
            TypeError,
            "temperature must be a number or an array, got SamplingParams; pass settings as "
            "**settings.",
        ),
        (
            {"top_p": [0.9]},
            TypeError,
            "top_p must be a number or an array, got list; convert with jnp.asarray.",
        ),
        (
            {"top_k": 50.0},
            TypeError,
            "top_k must be an integer or an integer array, got float32; convert with int(top_k) "
            "or top_k.astype(jnp.int32).",
        ),
        (
            {"top_k": True},
            TypeError,
            "top_k must be an integer or an integer array, got bool; convert with int(top_k) or "
            "top_k.astype(jnp.int32).",
        ),
        (
            {"top_p": np.bool_(True)},
            TypeError,
            "top_p must be a real number or array, got bool; pass a float.",
        ),
        (
            {"temperature": np.ones(2)},
            ValueError,
            "temperature must broadcast to the batch shape (2, 3) of the logits, got shape (2,); "
            "pass a scalar or one value for each row.",
        ),
        (
            {"min_p": np.ones((4, 2, 3))},
            ValueError,
            "min_p must broadcast to the batch shape (2, 3) of the logits, got shape (4, 2, 3); "
            "pass a scalar or one value for each row.",
        ),
        (
            {"temperature": -0.5},
            ValueError,
            "temperature must be >= 0, got -0.5; 0 is greedy.",
        ),
        (
            {"temperature": float("nan")},
            ValueError,
            "temperature must be >= 0, got nan; 0 is greedy.",
        ),
        (
            {"top_p": 1.1},
            ValueError,
            "top_p must be in [0, 1], got 1.1; None or 1 is off.",
        ),
        (
            {"top_p": np.array([0.5, -0.1, 1.0])},
            ValueError,
            "top_p must be in [0, 1], got [ 0.5 -0.1  1. ]; None or 1 is off.",
        ),
        (
            {"min_p": float("nan")},
            ValueError,
            "min_p must be in [0, 1], got nan; None or 0 is off.",
        ),
    ],
)
def test_settings(settings, error, message):
    # The dtype of a Python float is named after the user's x64 setting.
    message = message.replace("float32;", f"{jnp.result_type(float)};")
    calls = (
        lambda: sample(KEY, X, **settings),
        lambda: process_logits(X, **settings),
        lambda: reference.sample(KEY, X, **settings),
        lambda: jax.jit(lambda x: sample(KEY, x, **settings))(X),
    )
    for call in calls:
        with pytest.raises(error) as info:
            call()
        assert str(info.value) == message


CURE = "make one with jax.random.key(seed), or one per row with jax.random.split."


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (0, TypeError, f"key must be a JAX PRNG key, got int; {CURE}"),
        (
            jnp.zeros(2, jnp.float32),
            TypeError,
            f"key must be a JAX PRNG key, got an array of dtype float32; {CURE}",
        ),
        (
            np.zeros((2, 3), np.uint32),
            ValueError,
            f"key must hold the words of a legacy PRNG key in its last axis, got shape (2, 3); "
            f"{CURE[:-1]}, or of another kind with jax.random.wrap_key_data.",
        ),
        (
            jax.random.split(KEY, 3),
            ValueError,
            f"key must be one key or one for each row, of shape () or (2, 3), got shape (3,); "
            f"{CURE}",
        ),
    ],
)
def test_keys(key, error, message):
    with pytest.raises(error) as info:
        sample(key, X)
    assert str(info.value) == message


def test_reference_bits():
    with pytest.raises(ValueError, match="pass one for each row") as info:
        reference.sample(np.zeros(2, np.uint64), X)
    assert str(info.value) == (
        "uint64 bits must have the batch shape (2, 3) of the logits, got shape (2,); pass one for "
        "each row."
    )


def test_integers_beyond_float32():
    """They are infinite, whatever takes them."""
    x = np.array([[0.0, 1.0, 3.0]], np.float32)
    key, huge = jax.random.key(0), 10**400
    np.testing.assert_array_equal(sample(key, x, huge), sample(key, x, np.inf))
    np.testing.assert_array_equal(apply_top_n_sigma(x, huge), x)
    state, _ = mirostat(key, x, huge)
    assert state == np.inf
    history = init_history(np.array([[0]]), 3)
    for settings in ((huge, 0.0, 0.0), (1.0, huge, -huge)):
        plain = [float(np.clip(value, -1e308, 1e308)) for value in settings]
        result = sampling_jax.apply_penalties(x, history, *settings)
        np.testing.assert_array_equal(result, sampling_jax.apply_penalties(x, history, *plain))
    with pytest.raises(ValueError, match="base must be >= 1 and finite"):
        sampling_jax.apply_dry(x, np.zeros(5, np.int32), 5, 1.0, huge)


WHOLE = {
    "typical_p": lambda n: sampling_jax.apply_typical_p(RANKED, n),
    "epsilon": lambda n: sampling_jax.apply_epsilon_cutoff(RANKED, n),
    "eta": lambda n: sampling_jax.apply_eta_cutoff(RANKED, n),
    "top_n_sigma": lambda n: apply_top_n_sigma(RANKED, n),
    "xtc": lambda n: sampling_jax.apply_xtc(RANKED, 0.1, n),
    "dry": lambda n: sampling_jax.apply_dry(RANKED, np.ones(60, np.int32), 60, n, n + n),
    "penalties": lambda n: sampling_jax.apply_penalties(
        RANKED, init_history(np.zeros((3, 4), np.int32), 5), n + n, n, n
    ),
    "mirostat": lambda n: mirostat(KEY, RANKED, n, n, n),
}
RANKED = np.tile(np.arange(5, dtype=np.float32), (3, 1))


@pytest.mark.slow
@pytest.mark.parametrize("call", WHOLE.values(), ids=WHOLE.keys())
def test_integers_of_a_device(call):
    """As numbers, in whatever takes real ones; a product of them would wrap around."""
    expected = call(1)
    with jax.numpy_dtype_promotion("strict"):
        results = [call(jnp.asarray(1, dtype)) for dtype in ("int8", "uint8", "int32", "int4")]
        results.append(jax.jit(call)(jnp.int32(1)))
    for result in results:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result, expected)


def test_arrays_on_devices_are_never_inspected():
    settings = {"temperature": -1.0, "top_p": 7.0, "min_p": np.nan}
    sample(KEY, X, **{name: on_device(value) for name, value in settings.items()})


def test_positional_arguments_end_at_top_p():
    with pytest.raises(TypeError, match="positional"):
        sample(KEY, X, 1.0, None, None, 0.1)


def test_public_names():
    public = {name for name in vars(sampling_jax) if not name.startswith("_")}
    assert public == {
        "History",
        "Logprobs",
        "SamplingParams",
        "Verified",
        "apply_dry",
        "apply_epsilon_cutoff",
        "apply_eta_cutoff",
        "apply_logit_bias",
        "apply_min_length",
        "apply_min_p",
        "apply_no_repeat_ngram",
        "apply_penalties",
        "apply_temperature",
        "apply_token_bitmask",
        "apply_top_k",
        "apply_top_n_sigma",
        "apply_top_p",
        "apply_typical_p",
        "apply_xtc",
        "init_history",
        "log_kept_mass",
        "log_prob",
        "logprobs",
        "mirostat",
        "process_logits",
        "reference",
        "sample",
        "sample_n",
        "sample_with_logprobs",
        "speculative_verify",
        "suppress_tokens",
        "update_history",
    }
