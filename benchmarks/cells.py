"""What is timed: `sample` with several settings, on several kinds of logits.

T is temperature=0.8, k is top_k=50 (with T), p is top_p=0.9 (with T) and min_p is min_p=0.05.
arrays is k+p with an array [batch] for each setting, and rows has a random temperature, top_k and
top_p for each row. jit is k+p inside a jit of the caller's, keys is k+p with a key for each row,
and vmap is that as a `jax.vmap` of a call for one row, inside jit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sampling_jax import sample

REAL = Path(__file__).parents[1] / "tests/data/smollm2_logits_8x49152_f16.npy"


def real(rng: np.random.Generator, batch: int, vocabulary: int) -> np.ndarray:
    """A language model's, its rows repeated and tiled to the vocabulary."""
    model = np.load(REAL).astype(np.float32)
    return np.resize(model, (batch, model.shape[1]))[:, np.arange(vocabulary) % model.shape[1]]


def normal(rng: np.random.Generator, batch: int, vocabulary: int) -> np.ndarray:
    return 2.5 * rng.standard_normal((batch, vocabulary), np.float32)


def zipf(rng: np.random.Generator, batch: int, vocabulary: int) -> np.ndarray:
    ranks = np.tile(np.arange(vocabulary, dtype=np.float32), (batch, 1))
    return -np.log1p(rng.permuted(ranks, axis=1))


def one_hot(rng: np.random.Generator, batch: int, vocabulary: int) -> np.ndarray:
    x = 0.01 * normal(rng, batch, vocabulary)
    x[np.arange(batch), rng.integers(vocabulary, size=batch)] = 50
    return x


LOGITS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "real": real,
    "zipf": zipf,
    "flat": lambda *a: 0.001 * normal(*a),
    "normal": normal,
    "one-hot": one_hot,
    "ascending": lambda *a: np.sort(normal(*a), axis=1),
    "descending": lambda *a: -np.sort(normal(*a), axis=1),
    "equal": lambda _, *shape: np.zeros(shape, np.float32),
    "two-level": lambda rng, *shape: rng.integers(2, size=shape).astype(np.float32),
}


def make_logits(batch: int, vocabulary: int, dtype: str, logits: str) -> jax.Array:
    """Logits [batch, vocabulary] of that kind, the same at every call."""
    return jnp.asarray(LOGITS[logits](np.random.default_rng(0), batch, vocabulary), dtype)


T = {"temperature": 0.8}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "T": T,
    "k": T | {"top_k": 50},
    "p": T | {"top_p": 0.9},
    "k+p": T | {"top_k": 50, "top_p": 0.9},
    "k+p+min_p": T | {"top_k": 50, "top_p": 0.9, "min_p": 0.05},
}
CALLS = [*SETTINGS, "arrays", "rows", "jit", "keys", "vmap"]


class Call(NamedTuple):
    """A function of (key, logits, settings), and what it gets beside the logits."""

    function: Callable[..., jax.Array]
    key: jax.Array
    settings: dict[str, Any]


def public(key: jax.Array, logits: jax.Array, settings: dict[str, Any]) -> jax.Array:
    return sample(key, logits, **settings)


jitted = jax.jit(public)
vmapped = jax.jit(jax.vmap(public, (0, 0, None)))


def make_call(name: str, batch: int) -> Call:
    key = jax.random.key(0)
    if name == "rows":
        rng = np.random.default_rng(1)
        choices = {
            "temperature": np.array([0.0, 0.7, 1.0, 1.3], np.float32),
            "top_k": np.array([0, 1, 20, 50, 100], np.int32),
            "top_p": np.array([0.5, 0.9, 0.95, 1.0], np.float32),
        }
        rows = {setting: jnp.asarray(rng.choice(c, batch)) for setting, c in choices.items()}
        return Call(public, key, rows)
    if name == "arrays":
        values = {setting: jnp.full(batch, value) for setting, value in SETTINGS["k+p"].items()}
        return Call(public, key, values)
    function = {"jit": jitted, "vmap": vmapped}.get(name, public)
    key = jax.random.split(key, batch) if name in ("keys", "vmap") else key
    return Call(function, key, SETTINGS.get(name, SETTINGS["k+p"]))
