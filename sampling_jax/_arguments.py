"""What callers may pass: static checks with a cure, and one plain form for all of it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sampling_jax._checks import check_number, check_range, float32, is_share
from sampling_jax._where import where

MAX_VOCABULARY = 2**20  # the exact sums hold 2**20 weights below 2**31


class Settings(NamedTuple):
    """What a caller asks for: numbers, or arrays that broadcast to the batch; None is off."""

    temperature: ArrayLike | None = None
    top_k: ArrayLike | None = None
    top_p: ArrayLike | None = None
    min_p: ArrayLike | None = None


class RowSettings(NamedTuple):
    """The same for N rows: arrays [N]; None is off for all of them."""

    temperature: Array  # float32
    top_k: Array | None  # int32 in [0, V); 0 is off
    top_p: Array | None  # float32
    min_p: Array | None  # float32


def check(logits: ArrayLike, settings: Settings) -> tuple[tuple[int, ...], Settings]:
    """Raise unless the arguments fit; the batch shape, and the settings in a form jit takes."""
    batch = check_logits(logits)
    return batch, check_settings(settings, batch, np.shape(logits)[-1])


def check_settings(settings: Settings, batch: tuple[int, ...], vocabulary: int) -> Settings:
    """The same of settings alone."""
    for name, value in zip(Settings._fields, settings, strict=True):
        if value is not None:
            check_setting(name, value, batch)
    return Settings(
        *(from_host(name, value, vocabulary) for name, value in settings._asdict().items())
    )


def from_host(name: str, value: Any, vocabulary: int) -> Any:
    """A checked setting in one dtype, or an int after a float would compile again."""
    if value is None or isinstance(value, jax.Array):
        return value
    if name == "top_k" and isinstance(value, int):
        return np.array(min(max(value, 0), vocabulary), np.int32)
    if name == "top_k":  # any integers, of whatever size
        return np.array(np.clip(np.array(value, object), 0, vocabulary), np.int32)
    return float32(value)


def check_logits(logits: ArrayLike, name: str = "logits") -> tuple[int, ...]:
    """Raise unless logits [..., V] can be sampled from; their batch shape."""
    if not isinstance(logits, np.ndarray | np.generic | jax.Array):
        raise TypeError(
            f"{name} must be an array, got {type(logits).__name__}; convert with jnp.asarray."
        )
    shape, dtype = logits.shape, logits.dtype
    if not (jnp.issubdtype(dtype, jnp.floating) and dtype.isnative and dtype.itemsize <= 8):
        is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
        cure = "pass the key first" if is_key else f"convert with {name}.astype(jnp.float32)"
        raise TypeError(f"{name} must have a floating dtype, got {dtype}; {cure}.")
    if len(shape) == 0:
        raise ValueError(f"{name} must have shape [..., V], got shape (); add the vocabulary axis.")
    if not 1 <= shape[-1] <= MAX_VOCABULARY:
        raise ValueError(
            f"{name} must have 1 to {MAX_VOCABULARY} tokens in their last axis, got shape "
            f"{tuple(shape)}; put the vocabulary last."
        )
    return tuple(shape[:-1])


def check_setting(name: str, value: Any, batch: tuple[int, ...]) -> None:
    """Raise unless a setting is a number, or an array that broadcasts to the batch, in range."""
    check_number(name, value, batch, "integer" if name == "top_k" else "real")
    if name == "temperature":
        check_range(name, value, lambda t: t >= 0, ">= 0", "0 is greedy")
    elif name != "top_k":
        cure = "None or 1 is off" if name == "top_p" else "None or 0 is off"
        check_range(name, value, is_share, "in [0, 1]", cure)


def flat_settings(settings: Settings, batch: tuple[int, ...], vocabulary: int) -> RowSettings:
    """Settings for each of the N rows of a batch, in one form."""

    def flat(value: ArrayLike) -> Array:
        return jnp.broadcast_to(jnp.asarray(value), batch).reshape(math.prod(batch))

    def floats(value: ArrayLike | None) -> Array | None:
        return None if value is None else flat(value).astype(jnp.float32)

    temperature = flat(1.0 if settings.temperature is None else settings.temperature)
    top_k = None
    if settings.top_k is not None:
        top_k = flat(settings.top_k)
        # Before the comparison with V, which a narrow integer cannot hold.
        top_k = top_k if top_k.dtype.itemsize >= 4 else top_k.astype(jnp.int32)
        top_k = where((top_k > 0) & (top_k < vocabulary), top_k, 0).astype(jnp.int32)
    return RowSettings(
        temperature.astype(jnp.float32), top_k, floats(settings.top_p), floats(settings.min_p)
    )


def flat_rows(logits: Array, settings: Settings) -> tuple[Array, RowSettings]:
    """Logits [N, V] and settings [N]."""
    *batch, vocabulary = logits.shape
    rows = logits.reshape(math.prod(batch), vocabulary)
    return rows, flat_settings(settings, tuple(batch), vocabulary)


def check_integers(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise unless a value is an integer array of the batch shape, or an integer for a batch []."""
    if not isinstance(value, int | np.generic | np.ndarray | jax.Array):
        raise TypeError(
            f"{name} must be an integer array, got {type(value).__name__}; "
            f"convert with jnp.asarray({name}, jnp.int32)."
        )
    dtype = value.dtype if hasattr(value, "dtype") else jnp.result_type(type(value))
    if not (jnp.issubdtype(dtype, jnp.integer) and dtype.isnative):
        raise TypeError(
            f"{name} must be an integer array, got {dtype}; convert with {name}.astype(jnp.int32)."
        )
    if np.shape(value) != shape:
        raise ValueError(
            f"{name} must have shape {shape} to fit the logits, got shape {np.shape(value)}; "
            "pass one for each row."
        )


def flat_ids(tokens: Array, vocabulary: int) -> Array:
    """int32 [N] of int32 tokens of any shape; -1 for what is no id."""
    ids = jnp.asarray(tokens).reshape(-1)
    return where((ids >= 0) & (ids < vocabulary), ids, -1)
