"""Integer weights of tokens: exp2 in float32 operations that no compiler can round otherwise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sampling_jax._rows import per_row, traced_once
from sampling_jax._where import where
from sampling_jax.reference import EXP2, GREEDY, LOG2_E, SMALLEST_NORMAL

LEAST_ZERO = (np.float32(0) - SMALLEST_NORMAL).view(np.int32) - 1  # the bits of it


class Row(NamedTuple):
    """What the weights of a row depend on, beside its logits."""

    top: Array  # float32 [N], its largest clean logit
    scale: Array  # float32 [N], log2(e) / temperature


def clean(logits: Array) -> Array:
    """float32 logits; NaN counts as -inf, subnormal numbers (and -0) as 0."""
    x = logits.astype(jnp.float32)
    is_nan_or_tiny = ~(jnp.abs(x) >= SMALLEST_NORMAL)
    return where(is_nan_or_tiny, where(jnp.isnan(x), -jnp.inf, jnp.float32(0)), x)


def plain(logits: Array) -> Array:
    """The same logits in a dtype to read again and again: one that has -inf, and is not wide."""
    return logits if logits.dtype in (jnp.float16, jnp.bfloat16) else logits.astype(jnp.float32)


def numbers(logits: Array) -> Array:
    """float32 logits; NaN counts as -inf."""
    x = logits.astype(jnp.float32)
    return where(x > -jnp.inf, x, -jnp.inf)  # one instruction


def is_greedy(temperature: Array) -> Array:
    """Whether a row takes its most likely token: temperature 0, tiny, negative or NaN."""
    return ~(temperature > GREEDY)


def divisor(temperature: Array) -> Array:
    """What the logits of a row are divided by: 1 if it is greedy, inf where its scale is 0."""
    is_flat = temperature > LOG2_E / SMALLEST_NORMAL
    positive = where(is_flat, jnp.float32(jnp.inf), temperature)
    return where(is_greedy(temperature), jnp.float32(1), positive)


@jax.custom_jvp
def over(offset: Array, temperature: Array) -> Array:
    """Logits over a temperature that they broadcast with."""
    # A compiler multiplies by the reciprocal, which may be too small a number for it.
    factor = where(temperature > 2.0**64, jnp.float32(2.0**-64), jnp.float32(1))
    return (offset * factor) / (temperature * factor)


@over.defjvp
def _over_jvp(values: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """JAX would square the temperature, which gives 0 / 0 where it is small."""
    quotient = over(*values)  # by this rule again, where it is differentiated twice
    slope = where(jnp.isfinite(quotient), quotient, 0)  # else 0 times it would be NaN
    return quotient, (tangents[0] - slope * tangents[1]) / values[1]


def divide(numerator: Array, divisor: Array) -> Array:
    """float32 numerator / divisor, correctly rounded; 0 where that is subnormal.

    Both are normal and positive, or the divisor inf. By long division of the mantissas: float
    division is not exact on every accelerator.
    """
    above, below = (lax.bitcast_convert_type(v, jnp.uint32) for v in (numerator, divisor))
    rest, divisor = ((v & 0x7FFFFF) | 0x800000 for v in (above, below))
    smaller = (divisor > rest).astype(jnp.uint32)
    rest = rest << smaller
    quotient = rest // divisor
    for _ in range(3):  # 24 bits after the leading one: the last is the rounding bit
        rest = (rest % divisor) << 8
        quotient = (quotient << 8) | (rest // divisor)
    sticky = (rest % divisor > 0).astype(jnp.uint32)
    half, odd = quotient & 1, (quotient >> 1) & 1
    mantissa = (quotient >> 1) + (half & (sticky | odd))
    exponent = 127 + ((above >> 23) - (below >> 23) - smaller).astype(jnp.int32)
    # The leading one of the mantissa adds 1 to the exponent below it.
    bits = ((exponent - 1).astype(jnp.uint32) << 23) + mantissa
    return where(exponent >= 1, lax.bitcast_convert_type(bits, jnp.float32), jnp.float32(0))


def scale(temperature: Array) -> Array:
    """log2(e) / temperature in float32, correctly rounded; inf where greedy."""
    quotient = divide(jnp.full_like(temperature, LOG2_E), temperature)
    return where(is_greedy(temperature), jnp.float32(jnp.inf), quotient)


@traced_once
def row_weights(row: Row, x: Array) -> Array:
    """uint32 weights below 2**31 of logits [N, ...], clean or not."""
    x = x.astype(jnp.float32)
    top, scale = per_row(row.top, x), per_row(row.scale, x)
    # Beside a normal number a subnormal one changes no weight; beside 0 it is one.
    zero = lax.bitcast_convert_type(jnp.full_like(row.top, LEAST_ZERO, jnp.int32), jnp.float32)
    least = per_row(where(row.top == 0, zero, row.top), x)
    z = where(x >= least, jnp.float32(0), (top - x) * scale)
    z = where(z < 31, z, jnp.float32(31))  # NaN too
    whole = jnp.floor(z)
    t = z - whole
    value = jnp.full_like(z, EXP2[5])
    for coefficient in EXP2[4::-1]:
        # abs changes nothing, but forbids to fuse the product and the difference into one rounding.
        value = coefficient - jnp.abs(value * t)
    # A float in [1/4, 1/2) keeps the last bit of its exponent and its mantissa: 2**30 to 2**31.
    mantissa = lax.bitcast_convert_type(value, jnp.uint32) << 7
    shift = lax.bitcast_convert_type(whole + jnp.float32(2**23), jnp.uint32) & 31
    return mantissa >> shift
