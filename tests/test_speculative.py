"""`speculative_verify` equals its specification, and emits what the target would."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import (
    HOLES,
    SPREADS,
    count_compilations,
    keys,
    make_logits,
    make_settings,
    on_device,
    seeds,
)
from references import speculative as plain
from test_statistics import ALPHA, power, probabilities
from test_statistics import p_value as p_value_of_rows
from test_strict_settings import enable_x64

from sampling_jax import SamplingParams, process_logits, reference, sample, speculative_verify
from sampling_jax._arguments import Settings, flat_settings
from sampling_jax._probability import distribution_of, kept_weights, probability
from sampling_jax._weights import clean

SHAPE = (2, 3, 3, 100)  # [..., K, V]
SMALL = (6, 3, 100)  # as many rows


def make_case(seed, shape, spread="normal", holes="none"):
    """Draft tokens, draft logits and target logits, which agree in some positions."""
    rng = np.random.default_rng(seed)
    *batch, drafts, v = shape
    target = make_logits(seed, (*batch, drafts + 1, v), spread, holes)
    other = make_logits(seed + 1, shape, spread, holes)
    with np.errstate(all="ignore"):
        near = (target[..., :-1, :] + rng.normal(size=shape)).astype(np.float32)
    kind = rng.random((*batch, drafts, 1))
    draft = np.where(kind < 0.2, other, np.where(kind < 0.8, near, target[..., :-1, :]))
    bits = rng.integers(2**64, size=(*batch, drafts), dtype=np.uint64)
    with np.errstate(all="ignore"):
        tokens = reference.sample(bits, draft)
    wrong = rng.choice([-1, v, 2**31 - 1, 0, v - 1], tokens.shape)
    tokens = np.where(rng.random(tokens.shape) < 0.1, wrong, tokens).astype(np.int32)
    return tokens, draft, target


def verify(seed, case, length=3, **settings):
    """Of a SMALL case, by the program of SHAPE."""
    off = {"temperature": np.float32(1), "top_k": 0, "top_p": np.float32(1), "min_p": np.float32(0)}
    batch = SHAPE[:2]
    case = [part.reshape(*batch, *part.shape[1:]) for part in case]
    columns = {
        name: np.broadcast_to(settings.get(name, off[name]), 6).reshape(batch) for name in off
    }
    length = np.broadcast_to(length, 6).reshape(batch)
    result = speculative_verify(jax.random.key(seed), *case, **columns, draft_length=length)
    return [np.asarray(part).reshape(6, *part.shape[2:]) for part in result]


def assert_equals_reference(key, case, settings, length=None):
    result = speculative_verify(key, *case, **settings, draft_length=length)
    expected = plain.speculative_verify(key, *case, length, **settings)
    for got, want in zip(result, expected, strict=True):
        assert (got.dtype, got.shape) == (np.int32, want.shape)
        np.testing.assert_array_equal(got, want)
    return [np.asarray(part) for part in result]


@given(
    keys,
    seeds,
    st.sampled_from(sorted(SPREADS)),
    st.sampled_from(sorted(HOLES)),
)
def test_equals_reference(key, seed, spread, holes):
    case = make_case(seed, SHAPE, spread, holes)
    *batch, drafts, v = SHAPE
    length = np.random.default_rng(seed).integers(-1, drafts + 2, batch)
    assert_equals_reference(key, case, make_settings(seed, batch, v), on_device(length, np.int32))


@pytest.mark.slow
@pytest.mark.parametrize("structure", [(), ("temperature",), ("top_k",), ("top_p", "min_p")])
def test_settings_that_are_none(structure):
    total = 0
    for seed, holes in enumerate(sorted(HOLES)):
        case = make_case(seed, SMALL, "normal", holes)
        row_keys = jax.random.split(jax.random.key(seed), 6)
        settings = make_settings(seed, (6,), 100, structure)
        total += assert_equals_reference(row_keys, case, settings)[1].sum()
    assert 5 < total < 100  # of 126: some of each were seen


@pytest.mark.slow
def test_large_vocabulary():
    case = make_case(0, (2, 2, 70_000))
    assert_equals_reference(jax.random.key(0), case, {"temperature": 0.7, "top_p": 0.9})


@jax.jit
def all_probabilities(x, settings):
    distribution = distribution_of(x[:, None], flat_settings(Settings(**settings), (6,), 100))
    x = clean(distribution.logits)
    return probability(distribution, kept_weights(distribution, x, np.arange(100)[None, :]))


@pytest.mark.slow
@given(seeds, st.sampled_from(sorted(SPREADS)), st.sampled_from(sorted(HOLES)))
def test_probabilities_equal_reference(seed, spread, holes):
    x = make_logits(seed, (6, 100), spread, holes)
    settings = {name: np.asarray(v) for name, v in make_settings(seed, (6,), 100).items()}
    p = all_probabilities(x, settings)
    with np.errstate(all="ignore"):
        for i in range(6):
            w = plain.kept_weights(x[i], {name: value[i] for name, value in settings.items()})
            expected = plain.probabilities(w)
            assert p[i].tolist() == expected
            assert max(expected) < 2**31
            assert sum(expected) < 2**31


def emitted(p, q, target, draft):
    """Fractions: of each token in the place of one draft token drawn by weights `draft`."""
    emitted = [Fraction(0)] * len(p)
    rest = plain.residual(p, q, target).tolist()
    for x, weight in enumerate(draft.tolist()):
        drawn = Fraction(weight, int(draft.sum()))
        if q[x]:
            accepting = min(2**64, -((-p[x] << 64) // q[x]))  # so many of all bits accept
            assert accepting == 2**64 or not plain.is_accepted(accepting, p[x], q[x])
            assert accepting == 0 or plain.is_accepted(accepting - 1, p[x], q[x])
        else:
            accepting = 2**64 * (p[x] > 0)
        accepted = Fraction(accepting, 2**64)
        emitted[x] += drawn * accepted
        for y, part in enumerate(rest):
            emitted[y] += drawn * (1 - accepted) * Fraction(part, sum(rest))
    return emitted


@given(seeds, st.sampled_from([2, 3, 6, 40]), st.sampled_from([0.1, 1.0, 3.0]))
def test_emits_the_distribution_of_the_target(seed, v, spread):
    """In closed form, for every draw of the draft and all bits."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(2, v)) * spread).astype(np.float32)
    settings = {"temperature": rng.uniform(0.3, 2), "top_k": rng.integers(0, v)}
    target, draft = (plain.kept_weights(row, settings).astype(np.uint64) for row in x)
    p, q = (plain.probabilities(w.astype(np.uint32)) for w in (target, draft))
    result = emitted(p, q, target, draft)
    assert sum(result) == 1
    expected = [Fraction(w, int(target.sum())) for w in target.tolist()]
    distance = sum(abs(a - b) for a, b in zip(result, expected, strict=True)) / 2
    assert distance < Fraction(v, 2**29) + Fraction(1, 2**20)


V, ROWS = 5, 2**17
CASES = {
    "all": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    "filtered": {"temperature": 0.8, "top_k": 4, "top_p": 0.95},
}


def tables():
    """Logits of the next token by the last one: of the target, and of a draft not far from it."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(V, V)).astype(np.float32)
    return target, (target + rng.normal(size=(V, V))).astype(np.float32)


def joint(first, later):
    """float64 [V**3] of three tokens after token 0, from tables of probabilities."""
    return (first[0][:, None, None] * first[:, :, None] * later[None]).ravel()


def texts(key, settings):
    """int32 [ROWS, 3]: two drafts verified, and what is missing drawn from the target."""
    target, draft = map(jnp.asarray, tables())
    keys = iter(jax.random.split(key, 5))
    first = jnp.zeros(ROWS, jnp.int32)
    second = sample(next(keys), draft[first], **settings)
    third = sample(next(keys), draft[second], **settings)
    tokens, accepted = speculative_verify(
        jax.random.split(next(keys), ROWS),
        jnp.stack([second, third], axis=1),
        draft[jnp.stack([first, second], axis=1)],
        target[jnp.stack([first, second, third], axis=1)],
        **settings,
    )
    for i in (1, 2):
        missing = sample(next(keys), target[tokens[:, i - 1]], **settings)
        tokens = tokens.at[:, i].set(jnp.where(accepted < i, missing, tokens[:, i]))
    return tokens, accepted


def tables_of_probabilities(settings):
    return (np.array([probabilities(row, **settings) for row in table]) for table in tables())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_texts_follow_the_target(case):
    """The effects that this detects are below."""
    tokens, accepted = texts(jax.random.key(len(case)), CASES[case])
    assert set(np.asarray(accepted)) == {0, 1, 2}
    p, _ = tables_of_probabilities(CASES[case])
    counts = np.bincount(np.asarray(tokens) @ [V**2, V, 1], minlength=V**3)
    assert p_value_of_rows(counts[None], joint(p, p)[None]) > ALPHA


@pytest.mark.parametrize("case", CASES)
def test_effects_are_detected(case):
    p, q = tables_of_probabilities(CASES[case])
    both = np.minimum(p, q)
    rejected = 1 - both.sum(1, keepdims=True)
    # A rejected token replaced by a draw of the target, and 4 % too many accepted.
    of_target = both + rejected * p
    residual = (p - both) / np.maximum((p - both).sum(1, keepdims=True), 1e-300)
    more = np.minimum(1.04 * p, q)
    too_many = more + (1 - more.sum(1, keepdims=True)) * residual
    for wrong in (of_target, too_many):
        assert power(joint(p, p)[None], joint(wrong, p)[None], ROWS) > 0.99
    # The tokens after an accepted one are a tenth of the draft's.
    mixed = np.where(p > 0, 0.9 * p + 0.1 * q, 0)
    bonus = joint(p, mixed / mixed.sum(1, keepdims=True))
    assert power(joint(p, p)[None], bonus[None], ROWS) > 0.99


@pytest.mark.slow
def test_accepts_all_of_an_identical_draft():
    _, _, target = make_case(0, SMALL)
    draft = target[:, :-1]
    settings = {"temperature": 1.5, "top_p": np.linspace(0.5, 1, 6, dtype=np.float32)}
    bits = np.random.default_rng(0).integers(2**64, size=(6, 3), dtype=np.uint64)
    tokens = reference.sample(bits, draft, 1.5, top_p=settings["top_p"][:, None])
    emitted, accepted = verify(1, (tokens, draft, target), **settings)
    assert accepted.tolist() == [3] * 6
    np.testing.assert_array_equal(emitted[:, :3], tokens)
    assert (emitted[:, 3] >= 0).all()


def test_greedy_is_the_longest_prefix_that_agrees():
    seen = set()
    for seed in range(20):
        tokens, draft, target = make_case(seed, SMALL)
        best = target.argmax(-1)
        agree = np.random.default_rng(seed).random(tokens.shape) < 0.6
        tokens = np.where(agree, best[:, :-1], tokens).astype(np.int32)
        emitted, accepted = verify(seed, (tokens, draft, target), temperature=0.0, top_k=50)
        agrees = np.concatenate([tokens == best[:, :-1], np.zeros((6, 1), bool)], axis=1)
        np.testing.assert_array_equal(accepted, np.argmin(agrees, axis=1))
        expected = np.where(np.arange(4) <= accepted[:, None], best, -1)
        np.testing.assert_array_equal(emitted, expected)
        seen |= set(accepted.tolist())
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_what_is_beyond_the_length_is_ignored(length):
    tokens, draft, target = make_case(0, SMALL)
    expected = verify(0, (tokens, draft, target), length)
    assert (expected[1] <= length).all()
    draft[:, length:], target[:, length + 1 :], tokens[:, length:] = np.nan, np.nan, -1
    result = verify(0, (tokens, draft, target), length)
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], expected[1])


def test_rejects_what_the_target_never_draws():
    for seed in range(10):
        tokens, draft, target = make_case(seed, SMALL)
        tokens = np.argmax(draft, -1).astype(np.int32)
        forbidden = target.copy()
        np.put_along_axis(forbidden[:, :-1], tokens[..., None], -np.inf, -1)
        tail = np.argmin(target[:, :-1], -1).astype(np.int32)
        kept = np.asarray(process_logits(target[:, 0], top_k=40)) > -np.inf
        for case, top_k, possible in (
            ((tokens, draft, forbidden), 0, forbidden[:, 0] > -np.inf),
            ((tail, draft, target), 40, kept),
            ((tokens + 100, draft, target), 40, kept),
            ((tokens - 100, draft, target), 40, kept),
        ):
            emitted, accepted = verify(seed, case, top_k=top_k)
            assert not accepted.any()
            assert np.take_along_axis(possible, emitted[:, :1], 1).all()
            assert (emitted[:, 1:] == -1).all()


def test_rows_with_nothing_to_draw():
    _, _, target = make_case(0, SMALL)
    tokens, draft = np.argmax(target[:, :-1], -1).astype(np.int32), target[:, :-1].copy()
    target[0, 0] = -np.inf  # nothing at once
    target[1, 1] = np.nan  # nothing after one
    target[2, 3] = -np.inf  # nothing after all
    draft[3], tokens[3] = -np.inf, -1  # the draft had nothing
    emitted, accepted = verify(0, (tokens, draft, target))
    assert accepted.tolist() == [0, 1, 3, 0, 3, 3]
    assert emitted[0].tolist() == [-1, -1, -1, -1]
    assert emitted[1].tolist() == [tokens[1, 0], -1, -1, -1]
    assert emitted[2].tolist() == [*tokens[2], -1]
    assert emitted[3, 0] >= 0
    assert (emitted[4:] >= 0).all()


@pytest.mark.slow
def test_one_result_however_it_is_called():
    case = make_case(3, SMALL, "normal", "all")
    settings = make_settings(3, (6,), 100)
    row_keys = jax.random.split(jax.random.key(3), 6)
    length = jnp.array([3, 2, 1, 0, 3, 3])
    expected = speculative_verify(row_keys, *case, **settings, draft_length=length)

    def call(key, tokens, draft, target, settings, length):
        return speculative_verify(key, tokens, draft, target, **settings, draft_length=length)

    rows = (row_keys, *case, settings, length)
    legacy = (jax.random.key_data(row_keys), *rows[1:])
    order = np.random.default_rng(0).permutation(6)
    shuffled = call(*jax.tree.map(lambda a: a[order], rows))
    others = (
        jax.vmap(call)(*rows),
        jax.lax.scan(lambda c, row: (c, call(*row)), None, rows)[1],
        call(*legacy),
        jax.tree.map(lambda a: a[np.argsort(order)], shuffled),
    )
    for other in others:
        for got, want in zip(other, expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_shard_map():
    case = make_case(0, (8, 2, 300))
    rows = (jax.random.split(jax.random.key(0), 8), *case, make_settings(0, (8,), 300))

    def call(key, tokens, draft, target, settings):
        return speculative_verify(key, tokens, draft, target, **settings)

    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")
    mapped = jax.jit(jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec))
    for got, want in zip(mapped(*rows), call(*rows), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_other_key_implementations():
    case = make_case(0, SMALL)
    key = jax.random.key(3, impl="rbg")
    assert_equals_reference(key, case, {})
    assert_equals_reference(jax.random.split(key, 6), case, {})


@pytest.mark.slow
def test_sampling_params():
    case = make_case(0, SMALL)
    requests = [{}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {}]
    params = SamplingParams.stack(requests)
    key = jax.random.key(0)
    result = speculative_verify(key, *case, **params, draft_length=np.full(6, 3))
    settings = {name: np.asarray(params[name]) for name in params.keys()}  # noqa: SIM118
    np.testing.assert_array_equal(result.tokens, verify(0, case, **settings)[0])


@pytest.mark.slow
def test_new_values_do_not_recompile():
    tokens, draft, target = map(jnp.asarray, make_case(0, SMALL))
    key = jax.random.key(0)
    assert_equals_reference(key, (tokens, draft, target), {"temperature": 0.5, "top_k": 3}, 2)
    compilations = count_compilations()
    for length in (0, 3, np.int64(2), np.uint8(1)):
        speculative_verify(key, tokens, draft, target, 1, int(length), draft_length=length)
    assert not compilations


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
def test_strict_settings(x64):
    case = make_case(0, SMALL, "normal", "all")
    settings = make_settings(0, (6,), 100)
    key = jax.random.key(0)
    expected = plain.speculative_verify(key, *case, **settings)
    with enable_x64(x64), jax.debug_nans(True), jax.debug_key_reuse(True):
        key = jax.random.key(0)
        result = speculative_verify(key, *case, **settings)
        with pytest.raises(jax.errors.KeyReuseError):
            sample(key, case[2][:, 0])
    for got, want in zip(result, expected, strict=True):
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_gradient_through_tokens_is_zero_not_an_error():
    tokens, draft, target = map(jnp.asarray, make_case(0, SMALL))

    def loss(draft, target, temperature):
        result = speculative_verify(jax.random.key(0), tokens, draft, target, temperature, 50)
        return jnp.sum(result.accepted.astype(jnp.float32)) + jnp.sum(target)

    by_draft, by_target, by_temperature = jax.grad(loss, (0, 1, 2))(draft, target, 0.7)
    assert not np.asarray(by_draft).any()
    assert (np.asarray(by_target) == 1).all()
    assert by_temperature == 0


def test_ids_beyond_32_bits_are_rejected():
    x = np.tile(np.float32([0, 0, 0, 9, 0]), (4, 1))
    result = speculative_verify(jax.random.key(0), np.array([3, 2**32 + 3, 3]), x[1:], x, 0.0)
    assert (result.tokens.tolist(), result.accepted) == ([3, 3, -1, -1], 1)


@pytest.mark.slow
def test_narrow_lengths_of_many_drafts():
    x, key = np.zeros((201, 5), np.float32), jax.random.key(0)
    ids = np.zeros(200, np.int32)
    expected = speculative_verify(key, ids, x[1:], x, draft_length=3)
    assert expected.accepted == 3
    for dtype in (jnp.int8, jnp.uint8):
        result = speculative_verify(key, ids, x[1:], x, draft_length=dtype(3))
        jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_shapes():
    empty = jnp.zeros((0, 4, 5))
    none = jnp.zeros((0, 3), jnp.int32)
    result = speculative_verify(jax.random.key(0), none, empty[:, 1:], empty, 0.7, 3)
    assert [part.shape for part in result] == [(0, 4), (0,)]


X = np.zeros((2, 4, 5), np.float32)
TOKENS = np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"target_logits": X.tolist()},
            TypeError,
            "target_logits must be an array, got list; convert with jnp.asarray.",
        ),
        (
            {"draft_logits": X[:, 1:].astype(np.int32)},
            TypeError,
            "draft_logits must have a floating dtype, got int32; convert with "
            "draft_logits.astype(jnp.float32).",
        ),
        (
            {"target_logits": X[:, :1]},
            ValueError,
            "target_logits must have shape [..., K + 1, V] for K >= 1 drafts, got shape "
            "(2, 1, 5); without a draft, call sample.",
        ),
        (
            {"draft_logits": X},
            ValueError,
            "draft_logits must have shape (2, 3, 5), a position less than the target_logits, got "
            "shape (2, 4, 5); pass those that each draft token was drawn from.",
        ),
        (
            {"draft_tokens": TOKENS[:, :2]},
            ValueError,
            "draft_tokens must have shape (2, 3) to fit the logits, got shape (2, 2); pass one "
            "for each row.",
        ),
        (
            {"draft_tokens": X[:, :3, 0]},
            TypeError,
            "draft_tokens must be an integer array, got float32; convert with "
            "draft_tokens.astype(jnp.int32).",
        ),
        (
            {"draft_length": np.array([1, 4])},
            ValueError,
            "draft_length must be in [0, 3], got [1 4]; None is all.",
        ),
        (
            {"draft_length": np.zeros(3, np.int32)},
            ValueError,
            "draft_length must broadcast to the batch shape (2,) of the logits, got shape (3,); "
            "pass a scalar or one value for each row.",
        ),
        (
            {"draft_length": jnp.zeros(2, jnp.float32)},
            TypeError,
            "draft_length must be an integer or an integer array, got float32; convert with "
            "int(draft_length) or draft_length.astype(jnp.int32).",
        ),
        (
            {"temperature": np.ones((2, 3))},
            ValueError,
            "temperature must broadcast to the batch shape (2,) of the logits, got shape (2, 3); "
            "pass a scalar or one value for each row.",
        ),
        (
            {"key": jax.random.split(jax.random.key(0), 3)},
            ValueError,
            "key must be one key or one for each row, of shape () or (2,), got shape (3,); make "
            "one with jax.random.key(seed), or one per row with jax.random.split.",
        ),
    ],
)
def test_errors(arguments, error, message):
    usual = {
        "key": jax.random.key(0),
        "draft_tokens": TOKENS,
        "draft_logits": X[:, 1:],
        "target_logits": X,
    }
    with pytest.raises(error) as info:
        speculative_verify(**usual | arguments)
    assert str(info.value) == message
