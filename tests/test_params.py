"""`SamplingParams`: settings of requests that come and go, in one compiled program."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import count_compilations, keys, make_logits, seeds
from references import params as plain

from sampling_jax import SamplingParams, process_logits, reference, sample

NAMES = ("temperature", "top_k", "top_p", "min_p")
shares = st.none() | st.floats(0, 1, width=32)
requests = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.none() | st.floats(0, 2.0**100, width=32),
        "top_k": st.none() | st.integers(-1, 300),
        "top_p": shares,
        "min_p": shares,
    },
)


def assert_same(params, columns):
    for name, column in plain.as_arrays(columns).items():
        assert params[name].dtype == column.dtype
        np.testing.assert_array_equal(np.maximum(params[name], 0), np.maximum(column, 0))


@given(st.lists(requests, max_size=5))
def test_stack_equals_reference(rows):
    params = SamplingParams.stack(rows)
    assert isinstance(params, SamplingParams)
    assert_same(params, plain.stack(rows))


@given(st.lists(requests, min_size=4, max_size=4), requests, st.integers(-4, 3))
def test_replace_row_equals_reference(rows, request, i):
    params = SamplingParams.stack(rows)
    replaced = params.replace_row(i, request)
    assert_same(params, plain.stack(rows))  # the old one is as it was
    rows[i] = request
    assert_same(replaced, plain.stack(rows))
    assert_same(params.replace_row(jnp.int32(i), request), plain.stack(rows))


@given(keys, seeds, st.lists(requests, min_size=4, max_size=4))
def test_a_row_of_a_stack_is_its_request_alone(key, seed, rows):
    x = make_logits(seed, (4, 129))
    row_keys = jax.random.split(key, 4)
    params = SamplingParams.stack(rows)
    tokens = sample(row_keys, x, **params)
    for i, request in enumerate(rows):
        assert tokens[i] == reference.sample(row_keys[i], x[i], **request)


@pytest.mark.slow
def test_all_off_changes_nothing():
    x = make_logits(0, (4, 129))
    key = jax.random.key(0)
    params = SamplingParams.stack([{}, {"temperature": None}, {"top_k": None, "top_p": None}, {}])
    np.testing.assert_array_equal(sample(key, x, **params), sample(key, x))
    np.testing.assert_array_equal(process_logits(x, **params), process_logits(x))


def test_numbers_of_every_kind():
    kinds = [
        {"temperature": t, "top_k": k, "top_p": p, "min_p": p}
        for t, k, p in (
            (1, 7, 0),
            (np.float64(1), np.uint8(7), np.float32(0)),
            (np.array(1), np.array(7, np.int64), np.float16(0)),
            (jnp.float32(1), jnp.uint8(7), jnp.bfloat16(0)),
            (jnp.int32(1), jnp.uint32(7), jnp.float16(0)),
        )
    ]
    params = SamplingParams.stack(kinds)
    assert_same(
        params, {"temperature": [1] * 5, "top_k": [7] * 5, "top_p": [0] * 5} | {"min_p": [0] * 5}
    )
    huge = SamplingParams.stack(
        [{"top_k": k, "temperature": 1e300} for k in (2**40, -(2**40), jnp.uint32(2**32 - 1))]
    )
    assert huge.top_k.tolist() == [2**20, 0, 2**20]
    assert huge.temperature.tolist() == [np.inf] * 3


def test_mapping_of_arrays():
    params = SamplingParams.stack([{"top_k": 3}])
    assert tuple(params.keys()) == NAMES
    assert list(dict(params)) == list(params) == list(NAMES)
    assert "top_p" in params
    assert "seed" not in params
    assert params["top_k"] is params.top_k
    with pytest.raises(KeyError, match="seed"):
        params["seed"]
    with pytest.raises(AttributeError):
        params.top_k = 1


@pytest.mark.slow
def test_pytree_through_jit_vmap_and_scan():
    rows = [{"temperature": 0.5 * i, "top_k": i, "top_p": 1 - i / 10} for i in range(6)]
    params = SamplingParams.stack(rows)
    x = make_logits(0, (6, 12))
    row_keys = jax.random.split(jax.random.key(0), 6)
    expected = sample(row_keys, x, **params)

    def call(key, x, params):
        return sample(key, x, **params)

    np.testing.assert_array_equal(jax.jit(call)(row_keys, x, params), expected)
    np.testing.assert_array_equal(jax.vmap(call)(row_keys, x, params), expected)
    _, scanned = jax.lax.scan(lambda c, row: (c, call(*row)), None, (row_keys, x, params))
    np.testing.assert_array_equal(scanned, expected)
    some = jax.tree.map(lambda a: a[jnp.array([4, 1])], params)
    assert_same(some, plain.stack([rows[4], rows[1]]))
    assert jax.tree.structure(some) == jax.tree.structure(params)
    assert [p[-1].name for p, _ in jax.tree_util.tree_leaves_with_path(params)] == list(NAMES)


def test_numpy_leaves():
    """As they come from a file, with or without jit."""
    params = SamplingParams.stack([{"temperature": 0.7}, {"top_k": 4}])
    expected = params.replace_row(1, {"top_p": 0.5})
    loaded = jax.tree.map(np.asarray, params)
    for context in (contextlib.nullcontext(), jax.disable_jit()):
        with context:
            result = loaded.replace_row(1, {"top_p": 0.5})
        jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_narrow_numbers_of_many_rows():
    params = SamplingParams.stack([{}] * 200)
    for i in (jnp.int8(-1), jnp.uint8(199), np.int8(-1)):
        assert np.flatnonzero(params.replace_row(i, {"top_k": 3}).top_k).tolist() == [199]


def test_traced_settings_and_rows():
    params = SamplingParams.stack([{"top_k": 5}, {"top_p": 0.5}])

    @jax.jit
    def build(t, k):
        return SamplingParams.stack([{"temperature": t}, {"top_k": k}])

    assert_same(build(0.5, 7), plain.stack([{"temperature": 0.5}, {"top_k": 7}]))
    replace = jax.jit(lambda i, t: params.replace_row(i, {"temperature": t}))
    assert_same(replace(0, 0.5), plain.stack([{"temperature": 0.5}, {"top_p": 0.5}]))
    assert_same(replace(-1, 0.5), plain.stack([{"top_k": 5}, {"temperature": 0.5}]))
    for beyond in (2, -3):
        assert_same(replace(beyond, 0.5), plain.stack([{"top_k": 5}, {"top_p": 0.5}]))


def test_a_batch_that_changes_compiles_nothing():
    """Every step another request takes the place of a row, whatever it sets."""
    x = jnp.asarray(make_logits(0, (4, 129)))
    row_keys = jax.random.split(jax.random.key(0), 4)
    step = jax.jit(lambda params: sample(row_keys, x, **params))
    params = SamplingParams.stack([{}] * 4)
    step(params.replace_row(0, {}))
    compilations = count_compilations()
    for i in range(20):
        values = {"temperature": i / 10, "top_k": i, "top_p": 1 - i / 20, "min_p": i / 40}
        request = {name: values[name] for j, name in enumerate(NAMES) if i >> j & 1}
        params = params.replace_row((int, np.int64, np.uint8)[i % 3](i % 4), request)
        step(params)
        step(SamplingParams.stack([request, {}, {"top_k": None}, values]))
    assert not compilations


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda stack: stack({"top_k": 3}),
            TypeError,
            "requests must be one mapping for each row, got dict; put it in a list.",
        ),
        (
            lambda stack: stack(3),
            TypeError,
            "requests must be one mapping for each row, got int; put it in a list.",
        ),
        (
            lambda stack: stack([{}, None]),
            TypeError,
            'requests[1] must be a mapping of settings, got NoneType; write {"temperature": 0.7}.',
        ),
        (
            lambda stack: stack([{"max_tokens": 3}]),
            TypeError,
            "requests[0] must have settings among temperature, top_k, top_p, min_p, got "
            "'max_tokens'; correct its name, or leave it out.",
        ),
        (
            lambda stack: stack([{}, {"top_k": 0.5}]),
            TypeError,
            f"requests[1]: top_k must be an integer or an integer array, got "
            f"{jnp.result_type(float)}; convert with int(top_k) or top_k.astype(jnp.int32).",
        ),
        (
            lambda stack: stack([{"top_p": "0.9"}]),
            TypeError,
            "requests[0]: top_p must be a number or an array, got str; convert with jnp.asarray.",
        ),
        (
            lambda stack: stack([{}, {}, {"temperature": -0.5}]),
            ValueError,
            "requests[2]: temperature must be >= 0, got -0.5; 0 is greedy.",
        ),
        (
            lambda stack: stack([{"min_p": float("nan")}]),
            ValueError,
            "requests[0]: min_p must be in [0, 1], got nan; None or 0 is off.",
        ),
        (
            lambda stack: stack([{"top_p": np.array([0.5, 0.6])}]),
            ValueError,
            "requests[0]: top_p must be one number, got shape (2,); make a request for each row.",
        ),
        (
            lambda stack: stack([{}]).replace_row(0, {"top_p": 1.5}),
            ValueError,
            "request: top_p must be in [0, 1], got 1.5; None or 1 is off.",
        ),
        (
            lambda stack: stack([{}]).replace_row(1, {}),
            ValueError,
            "i must be in [-1, 1), got 1; there are 1 rows.",
        ),
        (
            lambda stack: stack([{}]).replace_row(0.0, {}),
            TypeError,
            "i must be an integer, got float; pass the number of a row.",
        ),
        (
            lambda stack: stack([{}]).replace_row(jnp.float32(0), {}),
            TypeError,
            "i must be an integer, got an array of dtype float32; pass the number of a row.",
        ),
        (
            lambda stack: stack([{}]).replace_row(np.array("a"), {}),
            TypeError,
            "i must be an integer, got an array of dtype <U1; pass the number of a row.",
        ),
        (
            lambda stack: stack([{}]).replace_row(True, {}),
            TypeError,
            "i must be an integer, got bool; pass the number of a row.",
        ),
        (
            lambda stack: stack([{}]).replace_row(np.array([0]), {}),
            ValueError,
            "i must be one integer, got shape (1,); pass one row.",
        ),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error) as info:
        build(SamplingParams.stack)
    assert str(info.value) == message


def test_arrays_on_devices_are_never_inspected():
    params = SamplingParams.stack([{"temperature": jnp.float32(-1), "top_p": jnp.float32(7)}])
    assert (params.temperature.tolist(), params.top_p.tolist()) == ([-1.0], [7.0])
