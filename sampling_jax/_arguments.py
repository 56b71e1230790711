"""What callers may pass: static checks with a cure, and one plain form for all of it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

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
    batch = _check_logits(logits)
    for name, value in zip(Settings._fields, settings, strict=True):
        if value is not None:
            _check_setting(name, value, batch)

    def from_host(name: str, value: ArrayLike | None) -> ArrayLike | None:
        if value is None or isinstance(value, jax.Array):
            return value
        if name == "top_k":  # any integer, of whatever size
            return np.array(np.clip(np.array(value, object), 0, np.shape(logits)[-1]), np.int32)
        # One dtype for all, or an int after a float would compile again.
        with np.errstate(over="ignore"):
            return np.asarray(value).astype(np.float32)

    return batch, Settings(*map(from_host, Settings._fields, settings))


def _check_logits(logits: ArrayLike) -> tuple[int, ...]:
    """Raise unless logits [..., V] can be sampled from; their batch shape."""
    shape, dtype = getattr(logits, "shape", None), getattr(logits, "dtype", None)
    if shape is None or dtype is None:
        raise TypeError(
            f"logits must be an array, got {type(logits).__name__}; convert with jnp.asarray."
        )
    if not (jnp.issubdtype(dtype, jnp.floating) and dtype.isnative and dtype.itemsize <= 8):
        raise TypeError(
            f"logits must have a floating dtype, got {dtype}; "
            "convert with logits.astype(jnp.float32)."
        )
    if len(shape) == 0:
        raise ValueError("logits must have shape [..., V], got shape (); add the vocabulary axis.")
    if not 1 <= shape[-1] <= MAX_VOCABULARY:
        raise ValueError(
            f"logits must have 1 to {MAX_VOCABULARY} tokens in their last axis, got shape "
            f"{tuple(shape)}; put the vocabulary last."
        )
    return tuple(shape[:-1])


def _check_setting(name: str, value: Any, batch: tuple[int, ...]) -> None:
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        raise TypeError(
            f"{name} must be a number or an array, got {type(value).__name__}; "
            "convert with jnp.asarray."
        )
    dtype = jnp.result_type(value)
    integer = jnp.issubdtype(dtype, jnp.integer)
    if name == "top_k" and not integer:
        raise TypeError(
            f"top_k must be an integer or an integer array, got {dtype}; "
            "convert with int(top_k) or top_k.astype(jnp.int32)."
        )
    if not (integer or jnp.issubdtype(dtype, jnp.floating)):
        raise TypeError(f"{name} must be a real number or array, got {dtype}; pass a float.")
    shape = np.shape(value)
    try:
        fits = np.broadcast_shapes(shape, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must broadcast to the batch shape {batch} of the logits, got shape {shape}; "
            "pass a scalar or one value for each row."
        )
    if name == "top_k" or isinstance(value, jax.Array):
        return  # a value on a device is never fetched: it has a documented result instead
    if name == "temperature":
        valid, expected, cure = np.all(np.greater_equal(value, 0)), ">= 0", "0 is greedy"
    else:
        in_range = np.greater_equal(value, 0) & np.less_equal(value, 1)
        valid, expected = np.all(in_range), "in [0, 1]"
        cure = "None or 1 is off" if name == "top_p" else "None or 0 is off"
    if not valid:
        raise ValueError(f"{name} must be {expected}, got {value}; {cure}.")


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
        top_k = jnp.where((top_k > 0) & (top_k < vocabulary), top_k, 0).astype(jnp.int32)
    return RowSettings(
        temperature.astype(jnp.float32), top_k, floats(settings.top_p), floats(settings.min_p)
    )
