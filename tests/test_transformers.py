"""Parity with the logits warpers of Hugging Face transformers, where it and PyTorch are at hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from inputs import make_logits, real_logits

import sampling_jax

pytestmark = pytest.mark.slow


def warpers():
    """Pairs of ours and theirs, for a parameter."""
    module = pytest.importorskip("transformers.generation.logits_process")
    return {
        "temperature": (sampling_jax.apply_temperature, module.TemperatureLogitsWarper),
        "top_k": (sampling_jax.apply_top_k, module.TopKLogitsWarper),
        "top_p": (sampling_jax.apply_top_p, module.TopPLogitsWarper),
        "min_p": (sampling_jax.apply_min_p, module.MinPLogitsWarper),
        "typical_p": (sampling_jax.apply_typical_p, module.TypicalLogitsWarper),
        "epsilon": (sampling_jax.apply_epsilon_cutoff, module.EpsilonLogitsWarper),
        "eta": (sampling_jax.apply_eta_cutoff, module.EtaLogitsWarper),
    }


VALUES = {
    "temperature": [0.3, 0.7, 1.5],
    "top_k": [1, 7, 50, 3000],
    "top_p": [0.1, 0.5, 0.9, 0.99],
    "min_p": [0.001, 0.05, 0.5],
    "typical_p": [0.1, 0.5, 0.9, 0.99],
    "epsilon": [1e-5, 3e-4, 0.01, 0.2],
    "eta": [1e-5, 3e-4, 0.01, 0.2],
}
INPUTS = {
    "real": real_logits,
    "normal": lambda: make_logits(0, (16, 4096)),
    "masked": lambda: make_logits(1, (16, 4096), "normal", "-inf"),
    "wide": lambda: 5 * make_logits(2, (16, 32000)),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", VALUES)
def test_same_as_transformers(name, kind):
    torch = pytest.importorskip("torch")
    ours, theirs = warpers()[name]
    x = INPUTS[kind]()
    for value in VALUES[name]:
        expected = theirs(value)(None, torch.tensor(x)).numpy()
        result = np.asarray(ours(x, value))
        differ = (result > -np.inf) != (expected > -np.inf)
        # Where they differ, two tokens are tied, or a running sum of floats ends beside the bound.
        assert differ.sum(axis=1).max() <= 1 + ties_at_the_end(x, differ)
        assert differ.mean() < 1e-4
        both = (result > -np.inf) & (expected > -np.inf)
        np.testing.assert_allclose(result[both], expected[both], rtol=1e-6)


def ties_at_the_end(x, differ):
    """How many logits of a row are equal to one that only one of the two keeps."""
    most = 0
    for row, mask in zip(x, differ, strict=True):
        for value in np.unique(row[mask]):
            most = max(most, int(np.sum(row == value)))
    return most


def test_repetition_penalty_and_n_grams():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.generation.logits_process")
    x = make_logits(3, (8, 500))
    tokens = np.random.default_rng(0).integers(0, 20, (8, 40))
    ids, scores = torch.tensor(tokens), torch.tensor(x)
    history = sampling_jax.init_history(tokens, 500)
    np.testing.assert_allclose(
        sampling_jax.apply_penalties(x, history, repetition_penalty=1.3),
        module.RepetitionPenaltyLogitsProcessor(1.3)(ids, scores).numpy(),
        rtol=1e-6,
    )
    for n in (1, 2, 3):
        expected = module.NoRepeatNGramLogitsProcessor(n)(ids, scores.clone()).numpy()
        result = sampling_jax.apply_no_repeat_ngram(x, jnp.asarray(tokens), 40, n)
        assert (expected == -np.inf).any()
        np.testing.assert_array_equal(result, expected)
