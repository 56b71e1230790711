"""The path for GPUs gives the tokens of the specification, here on whatever device there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from inputs import (
    DTYPES,
    HOLES,
    SPREADS,
    STRUCTURES,
    make_logits,
    make_settings,
    on_device,
)
from jax.extend.core import ClosedJaxpr
from test_paths import OFF, PATHS, many_rows
from test_sample import test_no_device_gathers_the_logits, test_shard_map  # noqa: F401
from test_strict_settings import test_nan_checks_and_64_bit_types  # noqa: F401

from sampling_jax import _draw, log_prob, reference, sample, sample_with_logprobs
from sampling_jax._arguments import Settings, check, flat_settings
from sampling_jax._sorted import _key, _value, sorted_prefix
from sampling_jax._weights import clean


@pytest.fixture(autouse=True, scope="module")
def _as_on_a_gpu():
    def for_gpu(*args, default, cpu=None, cuda=None, rocm=None):
        return (cuda or default)(*args)

    with pytest.MonkeyPatch.context() as patch:
        jax.clear_caches()
        patch.setattr(jax, "default_backend", lambda: "gpu")
        patch.setattr(jax.lax, "platform_dependent", for_gpu)
        yield


def assert_equals_reference(x, settings, seeds=range(2)):
    for key in map(jax.random.key, seeds):
        tokens = reference.sample(key, x, **settings)
        np.testing.assert_array_equal(sample(key, x, **settings), tokens)


@jax.jit
def are_known(x, settings):
    """Bool [N]: the rows whose end is found among the tops of lanes, and needs no passes."""
    _, _, is_known = sorted_prefix(x, flat_settings(settings, x.shape[:1], x.shape[1]))
    return is_known


@pytest.mark.parametrize("name", PATHS)
def test_each_path(name):
    make, settings, end = PATHS[name]
    x, settings = make(np.random.default_rng(0)), OFF | settings
    known = are_known(x, check(x, Settings(**settings))[1])
    np.testing.assert_array_equal(known, end == "lanes")
    assert_equals_reference(x, settings)


@pytest.mark.parametrize(
    ("v", "structure"),
    [
        (300, ()),
        *(pytest.param(300, s, marks=pytest.mark.slow) for s in STRUCTURES[1:]),
        *(
            pytest.param(v, STRUCTURES[-1], marks=pytest.mark.slow)
            for v in (1, 5, 100, 2049, 8200, 140001)
        ),
    ],
)
def test_every_structure_of_settings(v, structure):
    for seed, (spread, holes) in enumerate(zip(sorted(SPREADS), sorted(HOLES) * 2, strict=False)):
        x = make_logits(seed, (6, v), spread, holes, DTYPES[v % 3])
        assert_equals_reference(x, make_settings(seed, (6,), v, structure), [seed])


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 24])  # and all 24 rows at once
def test_rows_that_need_passes_in_groups(size, monkeypatch):
    rng = np.random.default_rng(1)
    x = many_rows(rng)
    x[3] = -np.inf
    monkeypatch.setattr(_draw, "GPU_GROUP", size * x.shape[1])
    settings = {
        "temperature": on_device(rng.choice([0, 0.3, 1, 1, 3], len(x) - size % 2)),
        "top_k": jnp.asarray(rng.choice([0, 1, 50, 9000], len(x) - size % 2), jnp.int32),
        "top_p": on_device(rng.choice([0.2, 0.9, 0.99, 1], len(x) - size % 2)),
    }
    assert_equals_reference(x[size % 2 :], settings)


@given(arrays(np.float32, 8))
def test_keys_order_floats_and_put_nan_first(x):
    keys = np.asarray(_key(jnp.asarray(x)))
    values = np.asarray(_value(jnp.asarray(keys)))
    np.testing.assert_array_equal(values, clean(jnp.asarray(x)))
    values = values[np.argsort(keys)]
    assert (values[1:] >= values[:-1]).all()


@pytest.mark.slow
def test_logprobs():
    x, settings = make_logits(0, (6, 300), "normal", "-inf"), (0.7, 50, 0.9)
    tokens, logprobs = sample_with_logprobs(jax.random.key(0), x, *settings)
    np.testing.assert_array_equal(tokens, reference.sample(jax.random.key(0), x, *settings))
    np.testing.assert_allclose(logprobs, log_prob(x, tokens, *settings), rtol=1e-5, atol=1e-6)


def primitives(jaxpr):
    """The names of what a program does one after another, without the insides of branches."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        if equation.primitive.name != "cond":
            for value in equation.params.values():
                if isinstance(value, ClosedJaxpr):
                    yield from primitives(value.jaxpr)


def test_the_host_is_asked_once_and_last():
    """Whether all is known: a loop, or a branch before the end, would make the GPU wait."""

    def step(key, x):
        return sample(key, x, 0.7, 50, 0.9, min_p=0.1)

    program = jax.make_jaxpr(step)(jax.random.key(0), np.zeros((4, 70000), np.float32))
    done = list(primitives(program.jaxpr))
    loops = jax.make_jaxpr(lambda: jax.lax.fori_loop(0, jnp.int32(2), lambda i, x: x + i, 0))()
    assert {"while", "scan"} & set(primitives(loops.jaxpr))
    assert not {"while", "scan"} & set(done)
    assert done.count("cond") == 1
    assert set(done[done.index("cond") :]) <= {"cond", "reshape"}
    assert "sort" in done
