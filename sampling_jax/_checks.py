"""Checks of what every function may be given, beside the settings of `sample`, and its plain form.

Shapes and dtypes are always checked, values only on the host: an array on a device is not fetched.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sampling_jax._where import where

INT32 = np.iinfo(np.int32)
LARGEST = np.finfo(np.float32).max
BEYOND = 2**200  # an integer that is infinite as float32
PLAIN = {"integer": (int,), "real": (float, int), "bool": (bool,)}


def check_number(
    name: str,
    value: Any,
    batch: tuple[int, ...],
    kind: Literal["integer", "real", "bool"] = "real",
    of: str = "the logits",
) -> None:
    """Raise unless `value` is a number, or an array of them, that broadcasts to the batch."""
    if type(value) in PLAIN[kind]:  # most often, and ten times as fast
        return
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        cure = (
            "pass settings as **settings" if hasattr(value, "keys") else "convert with jnp.asarray"
        )
        raise TypeError(f"{name} must be a number or an array, got {type(value).__name__}; {cure}.")
    dtype = value.dtype if hasattr(value, "dtype") else jnp.result_type(type(value))
    integer = jnp.issubdtype(dtype, jnp.integer)
    if kind == "integer" and not integer:
        raise TypeError(
            f"{name} must be an integer or an integer array, got {dtype}; "
            f"convert with int({name}) or {name}.astype(jnp.int32)."
        )
    if kind == "real" and not (integer or jnp.issubdtype(dtype, jnp.floating)):
        raise TypeError(f"{name} must be a real number or array, got {dtype}; pass a float.")
    if kind == "bool" and dtype != jnp.bool_:
        raise TypeError(
            f"{name} must be a bool or a boolean array, got {dtype}; "
            f"convert with bool({name}) or {name}.astype(bool)."
        )
    if not _broadcasts(np.shape(value), batch):
        raise ValueError(
            f"{name} must broadcast to the batch shape {batch} of {of}, got shape "
            f"{np.shape(value)}; pass a scalar or one value for each row."
        )


def check_range(
    name: str, value: Any, valid: Callable[[Any], Any], expected: str, cure: str
) -> None:
    """Raise where a value on the host is out of range."""
    if isinstance(value, jax.Array):
        return
    is_valid = valid(value)
    if not (is_valid is True or np.all(is_valid)):  # the first for a plain number, which is faster
        raise ValueError(f"{name} must be {expected}, got {value}; {cure}.")


def is_share(value: Any) -> Any:
    return (value >= 0) & (value <= 1)


def at_least(least: int) -> Callable[[Any], Any]:
    """A check of numbers that are so large, and finite in float32."""
    return lambda value: (value >= least) & np.isfinite(float32(value))


def check_array(name: str, value: Any, kind: Literal["integer", "floating"]) -> tuple[int, ...]:
    """Raise unless `value` is an array of such numbers; its shape."""
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        raise TypeError(
            f"{name} must be an array, got {type(value).__name__}; convert with jnp.asarray."
        )
    if not jnp.issubdtype(value.dtype, getattr(jnp, kind)):
        article, plain = ("an", "int32") if kind == "integer" else ("a", "float32")
        raise TypeError(
            f"{name} must have {article} {kind} dtype, got {value.dtype}; "
            f"convert with {name}.astype(jnp.{plain})."
        )
    return tuple(value.shape)


def static_integer(name: str, value: Any) -> int:
    """A Python integer, or whatever else is one; TypeError for anything else."""
    if not isinstance(value, bool | jax.core.Tracer):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be an integer, got {type(value).__name__}; pass a Python int.")


def static_bool(name: str, value: Any) -> bool:
    """A Python bool, or NumPy's; TypeError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}; pass True or False.")
    return bool(value)


def check_lists(name: str, value: Any, batch: tuple[int, ...], axis: str = "n") -> None:
    """Raise unless `value` is integers [n], or [..., n] that broadcast to the batch."""
    shape = check_array(name, value, "integer")
    if not shape or not _broadcasts(shape[:-1], batch):
        raise ValueError(
            f"{name} must have shape [{axis}], or [..., {axis}] with leading axes that broadcast "
            f"to the batch shape {batch} of the logits, got shape {shape}; pass one list for all "
            "rows, or one for each."
        )


def _broadcasts(shape: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    if not shape or shape == batch:  # without the price of asking JAX
        return True
    try:
        return jnp.broadcast_shapes(shape, batch) == batch
    except ValueError:
        return False


def int32(value: Any) -> ArrayLike:
    """Integers of any kind; those beyond int32 become its nearest bound."""
    if isinstance(value, int):
        return np.array(min(max(value, INT32.min), INT32.max), np.int32)
    if value.dtype == np.int32:
        return value  # type: ignore[no-any-return]
    limits: Any = jnp.iinfo(value.dtype)  # type: ignore[no-untyped-call]
    low, high = max(limits.min, INT32.min), min(limits.max, INT32.max)
    result: ArrayLike = value.clip(low, high).astype(np.int32)
    return result


def float32(value: ArrayLike) -> ArrayLike:
    """Numbers of the host in one dtype, or an int after a float would compile again; integers of
    a device too, which would overflow.
    """
    if isinstance(value, jax.Array):
        is_float = jnp.issubdtype(value.dtype, jnp.floating)
        return value if is_float else value.astype(jnp.float32)
    if isinstance(value, int):
        value = min(max(value, -BEYOND), BEYOND)
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(np.float32)


def rows_of(logits: Array) -> Array:
    """float32 [N, V]; NaN counts as -inf, everything else is as it was."""
    x = logits.reshape(math.prod(logits.shape[:-1]), logits.shape[-1]).astype(jnp.float32)
    return where(jnp.isnan(x), -jnp.inf, x)


def column(value: ArrayLike, batch: tuple[int, ...]) -> Array:
    """A number for each of the N rows of a batch, [N, 1]; floating ones as float32."""
    array = jnp.broadcast_to(jnp.asarray(value), batch).reshape(math.prod(batch), 1)
    return array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


def matrix(values: ArrayLike, batch: tuple[int, ...]) -> Array:
    """[N, n] from [n] or [..., n] whose leading axes broadcast to the batch."""
    array = jnp.asarray(values)
    size = array.shape[-1]
    return jnp.broadcast_to(array, (*batch, size)).reshape(math.prod(batch), size)


def places(ids: Array, vocabulary: int, wanted: Array | bool = True) -> tuple[Array, Array]:
    """Where to scatter for ids [N, n]; an id outside the vocabulary, or not wanted, is dropped."""
    row = jnp.arange(ids.shape[0], dtype=jnp.int32)[:, None]
    # An index of -1 would be the last token; one at the end is beyond it, whatever the mode.
    inside = (ids >= 0) & (ids < vocabulary) & wanted
    return row, where(inside, ids, vocabulary)
