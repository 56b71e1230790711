"""The exact arithmetic under the sampler, against Python's integers and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from inputs import on_device

from sampling_jax import _wide, reference
from sampling_jax._bracket import rank, value_of
from sampling_jax._filters import min_p_threshold
from sampling_jax._weights import Row, clean, row_weights, scale

N = 64
LARGEST = (2**31 - 1) * 2**20  # the sum of a row of the largest vocabulary


def arrays(largest, smallest=0):
    return hnp.arrays(np.uint64, N, elements=st.integers(smallest, largest))


def wide(numbers):
    return (
        jnp.asarray((numbers >> np.uint64(_wide.LOW_BITS)).astype(np.uint32)),
        jnp.asarray((numbers & np.uint64(_wide.LOW_MASK)).astype(np.uint32)),
    )


def unwide(number):
    return [int(h) * 2**_wide.LOW_BITS + int(low) for h, low in zip(*number, strict=True)]


@given(arrays(2**64 - 1), arrays(LARGEST))
def test_fraction(bits, numbers):
    words = np.stack([bits >> np.uint64(32), bits & np.uint64(2**32 - 1)], -1).astype(np.uint32)
    result = jax.jit(_wide.fraction)(jnp.asarray(words), wide(numbers))
    assert unwide(result) == [int(b) * int(n) >> 64 for b, n in zip(bits, numbers, strict=True)]


@given(
    hnp.arrays(np.float32, N, elements=st.floats(0, 1 - 2**-24, width=32)),
    arrays(LARGEST, 1),
)
def test_ceil_share(p, numbers):
    result = unwide(jax.jit(_wide.ceil_share)(jnp.asarray(p), wide(numbers)))
    for i in range(N):
        # Below 2**-32 any target up to a 2**-20th part of the whole means the first token.
        exact = reference.share(p[i], numbers[i]) if p[i] >= 2**-32 else 1
        assert result[i] == max(1, exact)


@given(arrays(LARGEST), arrays(LARGEST))
def test_sums_differences_and_order(a, b):
    high, low = np.maximum(a, b), np.minimum(a, b)
    assert unwide(_wide.subtract(wide(high), wide(low))) == (high - low).tolist()
    half = np.uint64(1)
    assert (
        unwide(_wide.add(wide(a >> half), wide(b >> half))) == ((a >> half) + (b >> half)).tolist()
    )
    np.testing.assert_array_equal(_wide.greater(wide(a), wide(b)), a > b)


@given(arrays(2**20), arrays(2**31 - 1, 1), arrays(2**31 - 2))
def test_products_and_quotients(count, each, rest):
    product = wide(count * each)
    count32, each32 = (jnp.asarray(x.astype(np.uint32)) for x in (count, each))
    assert unwide(_wide.times(count32, each32)) == (count * each).tolist()
    np.testing.assert_array_equal(_wide.quotient(product, each32), count)
    more = np.minimum(rest, each - np.uint64(1))
    np.testing.assert_array_equal(
        _wide.quotient(wide(count * each + more), each32), count + (more > 0)
    )


def test_a_full_row_adds_up():
    largest = jnp.full((1, 2**13, 128), reference.HEAVIEST, jnp.uint32)
    lanes = _wide.add_up(_wide.widen(largest), axes=(1,))
    total = _wide.add_up(lanes, axes=(1,))
    assert unwide(total) == [reference.HEAVIEST * 2**20]


@given(hnp.arrays(np.float32, N, elements=st.floats(width=32, allow_nan=False)))
def test_ranks_order_floats(x):
    x = np.asarray(reference.clean(x))
    ranks = np.asarray(rank(jnp.asarray(x)))
    np.testing.assert_array_equal(ranks[:, None] < ranks, x[:, None] < x)
    np.testing.assert_array_equal(value_of(jnp.asarray(ranks)), x)


@given(hnp.arrays(np.float32, N, elements=st.floats(2.0**-63, np.inf, width=32)))
def test_scale_is_the_rounded_quotient(temperature):
    with np.errstate(under="ignore"):
        exact = reference.LOG2_E / temperature
    exact = np.where(exact < reference.SMALLEST_NORMAL, np.float32(0), exact)
    np.testing.assert_array_equal(jax.jit(scale)(jnp.asarray(temperature)), exact)


def all_fractions(first, last):
    """float32 in [first, last), a chunk at a time."""
    start, end = (int(np.float32(t).view(np.int32)) for t in (first, last))
    for begin in range(start, end, 2**24):
        yield np.arange(begin, min(begin + 2**24, end), dtype=np.int32).view(np.float32)


def check_weights(fractions):
    """Weights of whole parts 0 and 7 are those of the reference, and near exp2."""
    for t in fractions:
        for whole in (0, 7):
            x = np.append(-np.float32(whole) - t, np.float32(0)).astype(np.float32)
            # At this temperature the scale is 1, so z is the distance itself.
            w = reference.weights(x, reference.LOG2_E)
            row = Row(jnp.zeros(1, jnp.float32), jnp.ones(1, jnp.float32))
            np.testing.assert_array_equal(jax.jit(row_weights)(row, jnp.asarray(x)[None])[0], w)
            exact = np.exp2(31 + x.astype(np.float64))
            assert np.abs(w / exact - 1).max() <= 2.5e-7 + 2.0 ** (whole - 30)


def test_weights():
    rng = np.random.default_rng(0)
    check_weights([np.sort(rng.random(10**6, np.float32)), np.float32(2.0) ** -np.arange(1.0, 30)])


@pytest.mark.slow
def test_all_weights():
    """Every float32 in [2**-8, 1), each once: no value leaves [1/4, 1/2)."""
    check_weights(all_fractions(2**-8, 1))


def test_clean():
    x = np.array([1e-40, -1e-40, -0.0, 2.0**-126, np.nan, np.inf, -np.inf], np.float32)
    expected = np.array([0, 0, 0, 2.0**-126, -np.inf, np.inf, -np.inf], np.float32)
    for result in (reference.clean(x), np.asarray(jax.jit(clean)(on_device(x)))):
        np.testing.assert_array_equal(result.view(np.int32), expected.view(np.int32))


def test_min_p_threshold_at_its_ends():
    p = jnp.asarray([0.0, -1.0, 1e-12, 0.5, 1 - 2**-24, 1.0, 2.0], jnp.float32)
    exact = [
        0,
        0,
        1,
        *(reference.share(np.float32(q), reference.HEAVIEST) for q in (0.5, 1 - 2**-24)),
    ]
    result = np.asarray(min_p_threshold(p))
    np.testing.assert_array_equal(result[:5], exact)
    # No weight lies between these thresholds and the heaviest.
    assert all(reference.HEAVIEST - 2**7 < t <= reference.HEAVIEST for t in result[4:])
