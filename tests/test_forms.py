"""What changes logits beside `process_logits` gives the same in every form of call."""

import jax
import numpy as np
import pytest
from inputs import count_compilations, make_logits
from test_strict_settings import enable_x64

from sampling_jax import (
    apply_dry,
    apply_logit_bias,
    apply_min_length,
    apply_no_repeat_ngram,
    apply_penalties,
    apply_token_bitmask,
    init_history,
    suppress_tokens,
    update_history,
)


def penalties(x, ids, n):
    history = update_history(init_history(ids, x.shape[-1], n), ids[..., 0], n > 1)
    return apply_penalties(x, history, 1.2, 0.1 * n.astype(np.float32), 0.3)


CALLS = {
    "penalties": penalties,
    "no_repeat_ngram": lambda x, ids, n: apply_no_repeat_ngram(x, ids, 20, n),
    "dry": lambda x, ids, n: apply_dry(x, ids, 20, 0.8, 1.75, n, np.array([1])),
    "logit_bias": lambda x, ids, n: apply_logit_bias(x, ids, 0.5 + ids.astype(np.float32)),
    "token_bitmask": lambda x, ids, n: apply_token_bitmask(x, ids.astype(np.uint32)),
    "suppress_tokens": lambda x, ids, n: suppress_tokens(x, ids, n > 2),
    "min_length": lambda x, ids, n: apply_min_length(x, n, 3, ids),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def make_inputs(v=129, rows=8):
    ids = np.random.default_rng(0).integers(0, 4, (rows, 24)).astype(np.int32)
    return make_logits(0, (rows, v), "normal", "-inf"), ids, np.arange(rows, dtype=np.int32)


@every_call
def test_jit_vmap_and_batches(call):
    x, ids, n = make_inputs()
    expected = np.asarray(call(x, ids, n))
    assert (expected != x).any()
    for form in (jax.jit(call), jax.vmap(call), jax.vmap(jax.jit(call))):
        np.testing.assert_array_equal(form(x, ids, n), expected)
    np.testing.assert_array_equal(jax.lax.map(lambda row: call(*row), (x, ids, n)), expected)
    for row in range(0, 8, 3):
        np.testing.assert_array_equal(call(x[row], ids[row], n[row]), expected[row])
    grid = [array.reshape(2, 4, *array.shape[1:]) for array in (x, ids, n)]
    np.testing.assert_array_equal(call(*grid), expected.reshape(2, 4, -1))
    np.testing.assert_array_equal(jax.vmap(call)(*grid), expected.reshape(2, 4, -1))


@pytest.mark.slow
@every_call
def test_vmap_over_some_arguments(call):
    x, ids, n = make_inputs()
    for axes in ((0, None, None), (None, 0, None), (0, None, 0)):
        arguments = [a if axis == 0 else a[3] for a, axis in zip((x, ids, n), axes, strict=True)]
        expected = [
            call(*(a[i] if axis == 0 else a for a, axis in zip(arguments, axes, strict=True)))
            for i in range(len(x))
        ]
        result = jax.vmap(call, axes)(*arguments)
        np.testing.assert_array_equal(result, np.stack(expected))


@pytest.mark.slow
@every_call
def test_shard_map_over_some_arguments(call):
    x, ids, n = make_inputs()
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, one = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()
    for specs in ((rows, rows, rows), (rows, one, one), (one, rows, one)):
        arguments = [a if s == rows else a[:2] for a, s in zip((x, ids, n), specs, strict=True)]
        mapped = jax.jit(jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=rows))
        expected = [
            call(*(a[i : i + 2] if s == rows else a for a, s in zip(arguments, specs, strict=True)))
            for i in range(0, 8, 2)
        ]
        np.testing.assert_array_equal(mapped(*arguments), np.concatenate(expected))


@pytest.mark.slow
@every_call
def test_logits_sharded_over_the_vocabulary(call):
    x, ids, n = make_inputs(16384)
    mesh = jax.make_mesh((4,), ("v",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "v"))
    result = jax.jit(call)(jax.device_put(x, sharding), ids, n)
    np.testing.assert_array_equal(result, call(x, ids, n))


@pytest.mark.slow
@every_call
@pytest.mark.parametrize("x64", [False, True])
def test_nan_checks_and_64_bit_types(call, x64):
    x = make_logits(1, (8, 129), "normal", "all", np.float64 if x64 else np.float32)
    _, ids, n = make_inputs()
    expected = call(x, ids, n)
    with enable_x64(x64), jax.debug_nans(True):
        result = call(x, ids.astype(np.int64), n.astype(np.int64))
        assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)


def test_new_values_do_not_recompile():
    x, ids, _ = make_inputs()
    history = init_history(ids, 129)

    def calls(i, f, active):
        apply_penalties(x, update_history(history, ids[:, i], active), f + 1, f, f)
        apply_no_repeat_ngram(x, ids, i, i)
        apply_dry(x, ids, i, f, f + 1, i, ids[0])
        apply_min_length(x, i, i, ids)
        suppress_tokens(x, ids, active)

    calls(1, 0.5, True)
    compilations = count_compilations()
    kinds = ((2, 1, False), (np.int64(3), np.float64(0.3), np.True_), (np.uint8(4), 0, True))
    for kind in kinds:
        calls(*kind)
    assert not compilations
