"""The library works under the strictest settings of JAX, and changes none of them."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from inputs import make_logits, make_settings

from sampling_jax import process_logits, reference, sample
from sampling_jax._arguments import Settings


def test_a_key_is_consumed_once():
    x = make_logits(0, (4, 129))
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        sample(key, x)
        with pytest.raises(jax.errors.KeyReuseError):
            sample(key, x)
        sample(jax.random.split(jax.random.key(1), 4), x)


# JAX 0.7 has it under its earlier name.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


@pytest.mark.parametrize("x64", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("v", [129, pytest.param(50000, marks=pytest.mark.slow)])
def test_nan_checks_and_64_bit_types(x64, v):
    """With the larger vocabulary rows are searched in parts."""
    x = make_logits(0, (6, v), "normal", "all", np.float64 if x64 else np.float32)
    settings = make_settings(0, (6,), v)
    with enable_x64(x64), jax.debug_nans(True):
        tokens = sample(jax.random.key(0), x, **settings)
        assert tokens.dtype == np.int32
        np.testing.assert_array_equal(tokens, reference.sample(jax.random.key(0), x, **settings))
        assert process_logits(x, **settings).dtype == np.float32


@pytest.mark.slow
def test_filters_alone_with_64_bit_types():
    """A setting that is not given has a dtype of its own."""
    x = make_logits(0, (3, 130))
    with enable_x64(True):
        for settings in ({"temperature": 0.7}, {"top_p": 0.9}, {"min_p": 0.1}):
            expected = [mask for *_, mask in reference.rows(x, Settings(**settings))]
            np.testing.assert_array_equal(process_logits(x, **settings) > -np.inf, expected)


def test_import_changes_nothing():
    code = """
import jax, numpy
before, errors = dict(jax.config.values), numpy.geterr()
import sampling_jax
assert (before, errors) == (dict(jax.config.values), numpy.geterr())
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
