"""What has explicit axes of a mesh, or is exported for any number of rows, gives the same."""

import contextlib

import jax
import numpy as np
import pytest
from inputs import make_logits
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_forms import CALLS, make_inputs

import sampling_jax as sj
from sampling_jax import process_logits, reference, sample

V = 130  # all are tops, which compiles twice as fast
SETTINGS = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 1e-3}
ROWS, BOTH = ("rows", None), ("rows", "tokens")
KEY = jax.random.key(0)
EVERY = CALLS | {
    "with_logprobs": lambda x, ids, n: sj.sample_with_logprobs(KEY, x, **SETTINGS),
    "sample_n": lambda x, ids, n: sj.sample_n(KEY, x, 3, 0.8, n, replace=True),
    "sample_n, distinct": lambda x, ids, n: sj.sample_n(KEY, x, 3, 0.8, n, replace=False),
    "log_probs": lambda x, ids, n: process_logits(x, **SETTINGS, normalize=True),
    "gradient": jax.grad(lambda x, ids, n: sj.log_prob(x, n, **SETTINGS).sum()),
    "typical_p": lambda x, ids, n: sj.apply_typical_p(x, 0.9),
    "epsilon": lambda x, ids, n: sj.apply_epsilon_cutoff(x, 3e-3),
    "eta": lambda x, ids, n: sj.apply_eta_cutoff(x, 3e-3),
    "top_n_sigma": lambda x, ids, n: sj.apply_top_n_sigma(x, 1.0),
    "xtc": lambda x, ids, n: sj.apply_xtc(x, 0.01, 0.5),
    "logprobs": lambda x, ids, n: sj.logprobs(x, n, 5),
    "log_prob": lambda x, ids, n: sj.log_prob(x, n, **SETTINGS),
    "log_kept_mass": lambda x, ids, n: sj.log_kept_mass(x, **SETTINGS),
    "mirostat": lambda x, ids, n: sj.mirostat(KEY, x, n.astype(np.float32), 5.0, 0.1),
    "verify": lambda x, ids, n: sj.speculative_verify(
        KEY, ids[..., :1], x[..., None, :], jax.numpy.stack([x, x], axis=-2), 0.8, top_p=0.9
    ),
}
every_call = pytest.mark.parametrize("call", EVERY.values(), ids=EVERY.keys())


def assert_close(result, expected):
    """As sums of floats may differ; tokens are far apart."""
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def explicit_mesh():
    return jax.make_mesh((2, 2), ("rows", "tokens"), axis_types=(AxisType.Explicit,) * 2)


def put(mesh, x, *axes):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))


def axes_of(x):
    axes = (*jax.typeof(x).sharding.spec, *[None] * x.ndim)[: x.ndim]
    return tuple(axis if axis is None or isinstance(axis, str) else axis[0] for axis in axes)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(None, None), BOTH])
def test_keys_and_settings_that_are_sharded(axes):
    x, mesh, keys = make_logits(0, (8, 9000)), explicit_mesh(), jax.random.split(KEY, 8)
    settings = SETTINGS | {"temperature": np.linspace(0, 2, 8, dtype=np.float32)}
    expected = reference.sample(keys, x, **settings)
    settings["temperature"] = put(mesh, settings["temperature"], "rows")
    with contextlib.nullcontext() if axes == BOTH else jax.set_mesh(mesh):
        result = sample(put(mesh, keys, "rows"), put(mesh, x, *axes), **settings)
    assert axes_of(result) == axes[:1]
    np.testing.assert_array_equal(result, expected)


def test_rows_of_a_grid():
    x, mesh = make_logits(0, (2, 4, V)), explicit_mesh()
    result = sample(KEY, put(mesh, x, None, "rows", "tokens"), **SETTINGS)
    assert axes_of(result) == (None, "rows")
    np.testing.assert_array_equal(result, reference.sample(KEY, x, **SETTINGS))


def call(key, x):
    return sample(key, x, **SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [ROWS, BOTH])
def test_vmap(axes):
    x, mesh, keys = make_logits(0, (8, V)), explicit_mesh(), jax.random.split(KEY, 8)
    with jax.set_mesh(mesh):
        result = jax.jit(jax.vmap(call))(put(mesh, keys, "rows"), put(mesh, x, *axes))
    assert axes_of(result) == ("rows",)
    np.testing.assert_array_equal(result, reference.sample(keys, x, **SETTINGS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mirostat", "verify", "typical_p", "penalties"])
def test_vmap_of_others(name):
    arguments, mesh = make_inputs(V), explicit_mesh()
    sharded = [put(mesh, a, "rows") for a in arguments]
    with jax.set_mesh(mesh):
        results = jax.jit(jax.vmap(EVERY[name]))(*sharded)
    jax.tree.map(assert_close, results, jax.vmap(EVERY[name])(*arguments))


@pytest.mark.slow
def test_shard_map_over_one_of_two_axes():
    x, mesh, keys = make_logits(0, (8, V)), explicit_mesh(), jax.random.split(KEY, 8)
    rows = PartitionSpec("rows")
    mapped = jax.shard_map(call, mesh=mesh, in_specs=rows, out_specs=rows, axis_names={"rows"})
    with jax.set_mesh(mesh):
        result = jax.jit(mapped)(put(mesh, keys, "rows"), put(mesh, x, *BOTH))
    np.testing.assert_array_equal(result, reference.sample(keys, x, **SETTINGS))


@pytest.mark.slow
@every_call
def test_explicit_axes(call):
    (x, ids, n), mesh = make_inputs(V), explicit_mesh()
    sharded = put(mesh, x, *BOTH), put(mesh, ids, "rows"), put(mesh, n, "rows")
    results = jax.tree.leaves(jax.jit(call)(*sharded))
    for result, expected in zip(results, jax.tree.leaves(call(x, ids, n)), strict=True):
        assert axes_of(result) == (
            BOTH if result.shape == x.shape else ("rows", None)[: result.ndim]
        )
        assert_close(result, expected)


@pytest.mark.slow
@every_call
def test_export(call):
    arguments = make_inputs(V)
    rows = export.symbolic_shape("rows")
    shapes = [jax.ShapeDtypeStruct((*rows, *a.shape[1:]), a.dtype) for a in arguments]
    results = export.export(jax.jit(call))(*shapes).call(*arguments)
    jax.tree.map(assert_close, results, call(*arguments))


@pytest.mark.slow
def test_export_of_a_search():
    """Rows that end deep are searched one by one, as it is not known how many there are."""
    a, b = export.symbolic_shape("a, b")
    keys, x = jax.random.split(KEY, 6), make_logits(0, (6, 9000))
    top_k = np.array([0, 5, 6000], np.int32)  # broadcasts

    def call(data, x, top_k):
        return sample(jax.random.wrap_key_data(data), x, top_k=top_k, top_p=0.95)

    shapes = (
        jax.ShapeDtypeStruct((a, b, 2), np.uint32),
        jax.ShapeDtypeStruct((a, b, 9000), np.float32),
        jax.ShapeDtypeStruct((b,), np.int32),
    )
    data = jax.random.key_data(keys).reshape(2, 3, 2)
    tokens = export.export(jax.jit(call))(*shapes).call(data, x.reshape(2, 3, 9000), top_k)
    expected = reference.sample(keys, x, top_k=np.tile(top_k, 2), top_p=0.95)
    np.testing.assert_array_equal(tokens.reshape(6), expected)


@pytest.mark.slow
def test_a_row_of_requests_is_replaced():
    mesh = explicit_mesh()
    params = sj.SamplingParams.stack([{"top_k": i} for i in range(8)])
    sharded = jax.tree.map(lambda value: put(mesh, value, "rows"), params)
    result = sharded.replace_row(3, {"top_p": 0.5})
    assert axes_of(result.top_p) == ("rows",)
    jax.tree.map(np.testing.assert_array_equal, result, params.replace_row(3, {"top_p": 0.5}))
