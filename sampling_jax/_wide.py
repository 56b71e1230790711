"""Exact sums and products beyond 32 bits, as pairs of uint32.

A wide number is `(high, low)` and means `high * 2**19 + low` with `low < 2**19`: a row of 2**20
weights below 2**31 adds up without overflow, with or without 64-bit types enabled.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from sampling_jax._rows import traced_once
from sampling_jax._where import where

Wide = tuple[Array, Array]

BLOCK = 16
LOW_BITS = 19
LOW_MASK = 2**LOW_BITS - 1


def widen(value: Array) -> Wide:
    """A uint32 as a wide number."""
    return value >> LOW_BITS, value & LOW_MASK


def narrow(number: Wide) -> Array:
    """A wide number below 2**32 as uint32."""
    high, low = number
    return (high << LOW_BITS) | low


@traced_once
def carry(high: Array, low: Array) -> Wide:
    """Restore `low < 2**19`."""
    return high + (low >> LOW_BITS), low & LOW_MASK


def sums(*parts: Array, axes: tuple[int, ...]) -> list[Array]:
    """Sums of uint32 over axes, in one pass over all the parts."""
    start = [jnp.uint32(0)] * len(parts)
    axes = tuple(range(parts[0].ndim)[axis] for axis in axes)
    result: list[Array] = lax.reduce(list(parts), start, _add_each, axes)
    return result


def _add_each(a: list[Array], b: list[Array]) -> list[Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def add_up(number: Wide, axes: tuple[int, ...]) -> Wide:
    """The sum over axes of at most 2**13 terms in all."""
    high, low = sums(*number, axes=axes)
    return carry(high, low)


def running_sums(*parts: Array) -> list[Array]:
    """Inclusive running sums of uint32 [N, n], for small n: as n sums, they are one pass."""
    n = parts[0].shape[1]
    if n % BLOCK or n <= 2 * BLOCK:
        return _running_sums(parts)
    # In blocks, as a compiler computes the terms again for each sum.
    inside = _running_sums([part.reshape(-1, BLOCK) for part in parts])
    inside = [part.reshape(-1, n // BLOCK, BLOCK) for part in inside]
    last = [part[:, :, -1] for part in inside]
    earlier = [all_of - own for all_of, own in zip(_running_sums(last), last, strict=True)]
    return [(i + e[:, :, None]).reshape(-1, n) for i, e in zip(inside, earlier, strict=True)]


def _running_sums(parts: Sequence[Array]) -> list[Array]:
    position = lax.iota(jnp.int32, parts[0].shape[1])
    before = (position[:, None] >= position[None, :])[None]
    return sums(*(where(before, part[:, None, :], 0) for part in parts), axes=(2,))


def add(a: Wide, b: Wide) -> Wide:
    """`a + b`."""
    return carry(a[0] + b[0], a[1] + b[1])


@traced_once
def subtract(a: Wide, b: Wide) -> Wide:
    """`a - b`, for `a >= b`."""
    borrow = (a[1] < b[1]).astype(jnp.uint32)
    return a[0] - b[0] - borrow, (a[1] - b[1]) & LOW_MASK


@traced_once
def greater(a: Wide, b: Wide) -> Array:
    """`a > b`."""
    return (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] > b[1]))


def is_positive(number: Wide) -> Array:
    """Whether it is more than 0."""
    return (number[0] | number[1]) > 0


def column(number: Wide) -> Wide:
    """[...] as [..., 1]."""
    return number[0][..., None], number[1][..., None]


def approximate(number: Wide) -> Array:
    """The float32 nearest to a wide number, to two roundings."""
    high, low = (part.astype(jnp.float32) for part in number)
    result: Array = high * 2**LOW_BITS + low
    return result


def keep(condition: Array, number: Wide) -> Wide:
    """`number` where the condition holds, else 0."""
    return where(condition, number[0], 0), where(condition, number[1], 0)


def select(condition: Array | bool, a: Wide, b: Wide) -> Wide:
    """`a` where the condition holds, else `b`."""
    return where(condition, a[0], b[0]), where(condition, a[1], b[1])


def _carried(result: Array, term: Array) -> Array:
    """1 where a uint32 sum with `term` has wrapped around, else 0."""
    return (result < term).astype(jnp.uint32)


@traced_once
def _multiply(a: Array, b: Array) -> tuple[Array, Array]:
    """The 64-bit product of two uint32, as its upper and lower 32 bits."""
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a1 * b0 + ((a0 * b0) >> 16)
    other = a0 * b1 + (middle & 0xFFFF)
    return a1 * b1 + (middle >> 16) + (other >> 16), a * b


def _words(number: Wide) -> tuple[Array, Array]:
    """The upper and lower 32 bits."""
    high, low = number
    return high >> (32 - LOW_BITS), (high << LOW_BITS) | low


@traced_once
def _product(a: Array, number: Wide) -> tuple[Array, Array, Array]:
    """uint32 times wide, as three 32-bit words, the highest first."""
    t1, t0 = _words(number)
    h0, l0 = _multiply(a, t0)
    h1, l1 = _multiply(a, t1)
    middle = h0 + l1
    return h1 + _carried(middle, h0), middle, l0


@traced_once
def times(count: Array, value: Array) -> Wide:
    """`count * value` for uint32 below 2**21 and 2**31, where the product is a wide number."""
    high, middle, low = value >> LOW_BITS, (value >> 10) & 0x1FF, value & 0x3FF
    middle = count * middle
    return carry(count * high + (middle >> 9), ((middle & 0x1FF) << 10) + count * low)


def quotient(number: Wide, divisor: Array) -> Array:
    """`ceil(number / divisor)` for uint32 `divisor` in [1, 2**31), where that is below 2**21."""
    # The float quotient is off by less than one; what it leaves tells how much is missing.
    guess = (approximate(number) / divisor.astype(jnp.float32)).astype(jnp.uint32)
    guess = jnp.maximum(guess, 1) - 1
    rest = subtract(number, times(guess, divisor))
    for count in range(3):
        guess = guess + greater(rest, widen(count * divisor)).astype(jnp.uint32)
    return guess


def _from_words(high: Array, low: Array) -> Wide:
    return (high << (32 - LOW_BITS)) | (low >> LOW_BITS), low & LOW_MASK


def fraction(bits: Array, number: Wide) -> Wide:
    """`floor(bits / 2**64 * number)` for `bits` [..., 2] uint32, the upper word first."""
    c2, c1, c0 = _product(bits, column(number))
    # Words 3, 2 and 1 of what each word of the bits adds: 3 and 2 remain after division by 2**64.
    is_upper = jnp.broadcast_to(jnp.array([True, False]), bits.shape)
    parts = [where(is_upper, c2, 0), where(is_upper, c1, c2), where(is_upper, c0, c1)]

    def join(a: list[Array], b: list[Array]) -> list[Array]:
        lowest = a[2] + b[2]
        carried = _carried(lowest, a[2])
        low = a[1] + b[1]
        high = a[0] + b[0] + _carried(low, a[1])
        low = low + carried
        return [high + _carried(low, carried), low, lowest]

    # As one reduce it is computed once; else a compiler does it anew wherever it is used.
    start = [jnp.uint32(0)] * 3
    high, low, _ = lax.reduce(parts, start, join, (bits.ndim - 1,))
    return _from_words(high, low)


@traced_once
def ceil_share(p: Array, number: Wide) -> Wide:
    """`max(1, ceil(p * number))` for float32 `p` in [0, 1), exactly."""
    pattern = lax.bitcast_convert_type(p, jnp.uint32)
    mantissa = (pattern & 0x7FFFFF) | 0x800000
    # p = mantissa / 2**(24 + shift); below 2**-32 the first token of a row always suffices.
    exponent = pattern >> 23
    shift = jnp.uint32(126) - jnp.maximum(exponent, jnp.uint32(126 - 32))
    c2, c1, c0 = _product(mantissa, number)
    high, low, rest = (c2 << 8) | (c1 >> 24), (c1 << 8) | (c0 >> 24), c0 & 0xFFFFFF
    # Two shifts of at most 16 bits: one by 32 is undefined.
    for step in (jnp.minimum(shift, 16), shift - jnp.minimum(shift, 16)):
        mask = (jnp.uint32(1) << step) - 1
        rest = rest | (low & mask)
        low = (low >> step) | ((high & mask) << (16 - step) << 16)
        high = high >> step
    up = (rest > 0).astype(jnp.uint32)
    low = low + up
    high = high + _carried(low, up)
    tiny = (exponent < 126 - 32) | ((high | low) == 0)
    low = where(tiny, jnp.uint32(1), low)
    high = where(tiny, jnp.uint32(0), high)
    return _from_words(high, low)
