"""Logits and settings that samplers get wrong, for property tests."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
TEMPERATURES = [0.0, 1e-30, 2.0**-64, 1e-19, 1e-5, 0.1, 0.7, 1.0, 1.3, 100.0, 1e30, 3e38, np.inf]
TOP_PS = [0.0, 1e-9, 0.1, 0.5, 0.9, 1 - 2**-24, 1.0, 2.0, -1.0, np.nan]
MIN_PS = [0.0, 1e-12, 1e-3, 0.1, 0.5, 1 - 2**-24, 1.0, 2.0, -1.0, np.nan]


def top_ks(v):
    return [-1, 0, 1, 2, 5, v // 2, v - 1, v, v + 1]


SPREADS = {
    "normal": lambda rng, shape: rng.normal(size=shape) * 3,
    "narrow": lambda rng, shape: 100 + rng.normal(size=shape) * 1e-4,
    "bfloat16 ties": lambda rng, shape: rng.normal(size=shape).astype(ml_dtypes.bfloat16),
    "all equal": lambda rng, shape: np.full(shape, rng.normal()),
    "two levels": lambda rng, shape: np.where(rng.random(shape) < 0.5, 1.0, 1.5),
    "zipf": lambda rng, shape: (
        -np.log1p(rng.permuted(np.zeros(shape) + np.arange(shape[-1]), axis=-1))
    ),
    "ascending": lambda rng, shape: np.zeros(shape) + np.linspace(-9, 9, shape[-1]),
    "descending": lambda rng, shape: np.zeros(shape) - np.linspace(-9, 9, shape[-1]),
    "one hot": lambda rng, shape: (
        np.where(np.arange(shape[-1]) == shape[-1] // 2, 50.0, 0.0) + np.zeros(shape)
    ),
    "huge": lambda rng, shape: rng.normal(size=shape) * 1e30,
    "largest": lambda rng, shape: rng.choice([-3.4e38, 0.0, 3.4e38], shape),
    "subnormal": lambda rng, shape: rng.normal(size=shape) * 1e-38,
    "signed zeros": lambda rng, shape: rng.choice([-0.0, 0.0, 1e-40, -1e-40, -1.0], shape),
}

HOLES = {
    "none": lambda rng, x: x,
    "-inf": lambda rng, x: np.where(rng.random(x.shape) < 0.5, -np.inf, x),
    "padding": lambda rng, x: np.where(np.arange(x.shape[-1]) > x.shape[-1] // 3, -np.inf, x),
    "nan": lambda rng, x: np.where(rng.random(x.shape) < 0.3, np.nan, x),
    "+inf": lambda rng, x: np.where(rng.random(x.shape) < 0.1, np.inf, x),
    "all": lambda rng, x: np.where(
        rng.random(x.shape) < 0.2, rng.choice([np.nan, np.inf, -np.inf], x.shape), x
    ),
    "empty rows": lambda rng, x: np.where(
        rng.random((*x.shape[:-1], 1)) < 0.5, rng.choice([np.nan, -np.inf], x.shape), x
    ),
}


def make_logits(seed, shape, spread="normal", holes="none", dtype=np.float32):
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        return HOLES[holes](rng, SPREADS[spread](rng, shape)).astype(dtype)


def on_device(value, dtype=np.float32):
    """A JAX array, whose value is never refused; NaN too, whatever the user's checks."""
    with jax.debug_nans(False):
        return jnp.asarray(value, dtype)


def make_settings(seed, batch, v, names=("temperature", "top_k", "top_p", "min_p")):
    """Per-row settings as JAX arrays, whose values are never refused."""
    rng = np.random.default_rng(seed)
    choices = {
        "temperature": (np.array(TEMPERATURES, np.float32), np.float32),
        "top_k": (np.array(top_ks(v)), np.int32),
        "top_p": (np.array(TOP_PS, np.float32), np.float32),
        "min_p": (np.array(MIN_PS, np.float32), np.float32),
    }
    return {
        name: on_device(rng.choice(choices[name][0], batch), choices[name][1]) for name in names
    }


def count_compilations():
    """A list that grows by one with each program compiled from now on."""
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: "backend_compile" in event and compilations.append(event)
    )
    jax.jit(lambda x: x + 1)(np.float32(0))
    assert len(compilations) == 1  # the listener listens
    compilations.clear()
    return compilations


def real_logits():
    """float32 [8, 49152]: next-token logits of a language model of 135M parameters."""
    path = Path(__file__).parent / "data/smollm2_logits_8x49152_f16.npy"
    return np.load(path).astype(np.float32)


seeds = st.integers(0, 2**32 - 1)


def logits_of(*shapes):
    return st.builds(
        make_logits,
        seeds,
        st.sampled_from(shapes),
        st.sampled_from(sorted(SPREADS)),
        st.sampled_from(sorted(HOLES)),
    )


logits = logits_of((2, 3, 300))
few_logits = logits_of((2, 3, 100))  # all are tops, which compiles twice as fast
STRUCTURES = [
    (),
    ("temperature",),
    ("top_k",),
    ("top_p",),
    ("min_p",),
    ("temperature", "top_k"),
    ("temperature", "top_p"),
    ("top_k", "top_p"),
    ("temperature", "top_k", "min_p"),
    ("temperature", "top_p", "min_p"),
]
keys = st.builds(jax.random.key, seeds)
