"""Every rule of the specification matters: with any one of them broken, tokens differ."""

from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import HOLES, SPREADS, TEMPERATURES, make_logits, make_settings

from sampling_jax import reference, sample

V = 300
REPEATS = 8  # rows of each spread with each kind of holes
OFF = {
    "temperature": (1, np.float32),
    "top_k": (0, np.int32),
    "top_p": (1, np.float32),
    "min_p": (0, np.float32),
}
CRITICAL = 40  # rows on either side of a threshold

SOURCE = Path(reference.__file__).read_text()


def block(start, end):
    return SOURCE[SOURCE.index(start) : SOURCE.index(end)]


# Snippets of the specification.
TOP_K = block("    if 0 < top_k", "    if n and top_p")
TOP_P = block("    if n and top_p", "    if min_p >")
MIN_P = block("    if min_p >", "    mask = ")
NAN = "np.float32(-np.inf), x)"
SCALE = "LOG2_E / temperature if temperature > GREEDY else np.float32(np.inf)"
DISTANCE = "np.where(x == top, np.float32(0), (top - x) * scale)"
MANTISSA = "value.view(np.uint32) << np.uint32(7)"
WEIGHT = "return mantissa >> whole.astype(np.uint32)"
SHARE = "return -(-numerator * int(total) // denominator)"
RANKING = 'np.argsort(-x, kind="stable")'
HEAVIEST = "share(min(min_p, 1), HEAVIEST)"
ROW = "yield x[i], temperature, w,"
TOKEN = "draw(bit if t > GREEDY else 0, np.where(mask, w, np.uint32(0)))"
WORDS = "(words[..., 0] << np.uint64(32)) | words[..., 1]"

# Each breaks one rule by replacing snippets. Left out because no token can tell:
# - top_k after min_p: of two prefixes that do not depend on each other the shorter one stays.
# - top_k >= V not skipped: min(n, top_k) is n.
# - top_p=1 not skipped: the prefix that reaches the total leaves out weights of 0 only.
# - min_p=0 or a negative one not skipped: no weight is below 0.
# - top_p without max(1, ...) or max(..., 0): the first token reaches every target below 1.
# - -inf of a weight above 0, or -inf counted in n: each of the two makes up for the other.
MUTANTS = {
    "temperature ignored": [(SCALE, "LOG2_E")],
    "temperature 2 % off": [("LOG2_E / temperature if", "LOG2_E / temperature / 1.02 if")],
    "temperature 0 draws from ties": [("draw(bit if t > GREEDY else 0,", "draw(bit,")],
    "temperature 0 takes the last tie": [
        ("bit if t > GREEDY else 0", "bit if t > GREEDY else 2**64 - 1")
    ],
    "temperature 0 is 1": [(SCALE, SCALE.replace("np.float32(np.inf)", "LOG2_E"))],
    "temperature 2**-64 divides": [(SCALE, SCALE.replace(">", ">="))],
    "tiny temperature divides": [("GREEDY = np.float32(2.0**-64)", "GREEDY = 0")],
    "negative temperature loses its sign": [
        (SCALE, SCALE.replace("temperature", "abs(temperature)")),
        (ROW, ROW.replace("temperature", "abs(temperature)")),
    ],
    "NaN temperature is 1": [
        (SCALE, f"LOG2_E if np.isnan(temperature) else {SCALE}"),
        (ROW, ROW.replace("temperature", "np.nan_to_num(temperature, nan=1)")),
    ],
    "infinite temperature is greedy": [
        (SCALE, SCALE.replace("if temperature >", "if np.inf > temperature >"))
    ],
    "subnormal scale is not 0": [("scale if scale >= SMALLEST_NORMAL", "scale if scale >= 0")],
    "subnormals not flushed": [("np.abs(x) < SMALLEST_NORMAL", "np.abs(x) < 0")],
    "smallest normals flushed": [("np.abs(x) < SMALLEST_NORMAL", "np.abs(x) < 2.0**-125")],
    "NaN is +inf": [(NAN, "np.float32(np.inf), x)")],
    "NaN is 0": [(NAN, "np.float32(0), x)")],
    "+inf is the largest number": [(NAN, f"{NAN[:-2]}np.minimum(x, np.finfo(x.dtype).max))")],
    "-inf is the smallest number": [(NAN, f"{NAN[:-2]}np.maximum(x, np.finfo(x.dtype).min))")],
    "+inf weighs nothing": [
        (DISTANCE, DISTANCE.replace("x == top", "(x == top) & (top < np.inf)"))
    ],
    "empty row is 0": [("> -np.inf else -1", "> -np.inf else 0")],
    "ties by highest id": [(RANKING, "np.lexsort((-np.arange(x.size), -x))")],
    "top_k keeps k+1": [(TOP_K, f"    top_k += top_k > 0\n{TOP_K}")],
    "top_k keeps k-1": [(TOP_K, f"    top_k -= top_k > 1\n{TOP_K}")],
    "top_k keeps all ties": [
        (TOP_K, f"{TOP_K}        n = np.sum((x > -np.inf) & (x >= x[order[n - 1]]))\n")
    ],
    "top_k=0 keeps nothing": [("if 0 < top_k", "if 0 <= top_k")],
    "negative top_k drops from the end": [("if 0 < top_k", "if top_k and top_k")],
    "top_p drops the crossing token": [(TOP_P, f"{TOP_P}        n = max(1, n - 1)\n")],
    "top_p keeps one token too many": [(TOP_P, f"{TOP_P}        n += 1\n")],
    "top_p goes on where it is reached": [("np.uint64(target)", "np.uint64(target + 1)")],
    "top_p of all tokens": [
        (
            TOP_P,
            TOP_P.replace("running[-1]", "w.sum(dtype=np.uint64)")
            + "        n = min(n, running.size)\n",
        )
    ],
    "top_p before top_k": [(TOP_K + TOP_P, TOP_P + TOP_K)],
    "top_p=0 keeps nothing": [(TOP_P, f"{TOP_P}        n *= bool(top_p > 0)\n")],
    "top_p=0 keeps everything": [("if n and top_p <", "if n and 0 < top_p <")],
    "negative top_p is off": [("if n and top_p <", "if n and 0 <= top_p <")],
    "top_p=1 truncates": [(TOP_P, f"    n -= bool(n > 1 and top_p == 1)\n{TOP_P}")],
    "top_p above 1 truncates": [(TOP_P, f"    n -= bool(n > 1 and top_p > 1)\n{TOP_P}")],
    "NaN top_p is 0": [(TOP_P, f"    top_p = 0 if np.isnan(top_p) else top_p\n{TOP_P}")],
    "share rounds down": [(SHARE, "return numerator * int(total) // denominator")],
    "share in float32": [(SHARE, "return int(np.ceil(np.float32(p) * np.float32(total)))")],
    "min_p before top_p": [(TOP_P + MIN_P, MIN_P + TOP_P)],
    "min_p of the kept mass": [(HEAVIEST, "share(min(min_p, 1), ranked[:n].sum(dtype=np.uint64))")],
    "min_p of the whole mass": [(HEAVIEST, "share(min(min_p, 1), w.sum(dtype=np.uint64))")],
    "min_p of 2**31": [(HEAVIEST, "share(min(min_p, 1), 2**31)")],
    "min_p strict": [(HEAVIEST, f"{HEAVIEST} + 1")],
    "min_p above 1 keeps nothing": [(HEAVIEST, "share(min_p, HEAVIEST)")],
    "NaN min_p is 1": [(MIN_P, f"    min_p = 1 if np.isnan(min_p) else min_p\n{MIN_P}")],
    "draw with >= instead of >": [('side="right"', 'side="left"')],
    "draw in ranking order": [(TOKEN, f"{RANKING}[min({TOKEN[:-1]}[{RANKING}]), x.size - 1)]")],
    "draw ignores the filters": [(TOKEN, "draw(bit if t > GREEDY else 0, w)")],
    "draw from the last id down": [("int(bits) *", "(2**64 - 1 - int(bits)) *")],
    "words of the bits swapped": [
        (WORDS, "(words[..., 1] << np.uint64(32)) | words[..., 0]"),
    ],
    "last bit of the weights": [(WEIGHT, f"{WEIGHT} ^ np.uint32(1)")],
    "last bit of the mantissa": [(MANTISSA, f"{MANTISSA} ^ np.uint32(128)")],
    "last bit of a coefficient": [("0x1.62e38cp-2", "0x1.62e38ep-2")],
    "last bit of log2(e)": [("np.float32(1.44269504)", "np.float32(1.4426951)")],
    "weights are float16": [
        (MANTISSA, f"value.astype(np.float16).astype(np.float32){MANTISSA[5:]}")
    ],
    "weights are bfloat16": [(MANTISSA, f"{MANTISSA} & np.uint32(0x1FF << 23)")],
    "weights below 2**-8 are 0": [("np.where(z < 31, z,", "np.where(z < 8, z,")],
}


def mutated(changes):
    source = SOURCE
    for old, new in changes:
        assert source.count(old) == 1, f"{source.count(old)} of {old!r}"
        source = source.replace(old, new)
    module = ModuleType("mutated_reference")
    exec(compile(source, "mutated_reference", "exec"), module.__dict__)
    return module


def mixed_rows():
    """Every spread with every kind of holes; each setting is off in half of the rows."""
    kinds = [(spread, holes) for spread in sorted(SPREADS) for holes in sorted(HOLES)]
    x = np.concatenate([make_logits(i, (REPEATS, V), *kind) for i, kind in enumerate(kinds)])
    rng = np.random.default_rng(0)
    settings = {k: np.array(v) for k, v in make_settings(0, len(x), V).items()}
    settings["temperature"] = rng.choice(np.float32([*TEMPERATURES, -1, np.nan]), len(x))
    for name, (off, _) in OFF.items():
        settings[name][rng.random(len(x)) < 0.5] = off
    return x, settings


def temperature_rows():
    """Spreads that tell the ends of the range of temperatures apart, with no filter."""
    kinds = [(s, t) for s in ("huge", "largest", "subnormal") for t in TEMPERATURES]
    x = np.concatenate([make_logits(i, (REPEATS, V), s) for i, (s, _) in enumerate(kinds)])
    return x, {"temperature": np.repeat([t for _, t in kinds], REPEATS)}


def filter_rows():
    """Settings that all filter, so that their order matters."""
    rng = np.random.default_rng(3)
    choices = {"top_k": [-1, 2, 5, 20], "top_p": [0.5, 0.9, 2], "min_p": [0, 0.03, 0.1]}
    x = make_logits(3, (200, V))
    return x, {name: rng.choice(values, len(x)) for name, values in choices.items()}


def min_p_rows():
    """One heavy token and many at `min_p` to the last bit: half are kept, half are too light."""
    rng = np.random.default_rng(1)
    x = np.zeros((CRITICAL, V), np.float32) - rng.uniform(5.6, 6.6, (CRITICAL, 1))
    x[np.arange(CRITICAL), rng.integers(V, size=CRITICAL)] = 0
    x = x.astype(np.float32)
    thresholds = [int(reference.weights(row, 1).min()) + i % 2 for i, row in enumerate(x)]
    min_p = np.array([(w - 0.5) / reference.HEAVIEST for w in thresholds], np.float32)
    assert [reference.share(p, reference.HEAVIEST) for p in min_p] == thresholds
    return x, {"min_p": min_p}


def top_p_rows():
    """Three tokens, of which two have just `top_p`, or less than one unit less."""
    rng = np.random.default_rng(2)
    gaps = -rng.uniform(0, 1, 20_000).astype(np.float32)
    found = []
    for gap, w in zip(gaps, reference.weights(np.append(gaps, np.float32(0)), 1)[:-1].astype(int)):
        total, two = reference.HEAVIEST + 2 * w, reference.HEAVIEST + w
        p = np.float32(two / total)
        if reference.share(p, total) - two in (0, 1):
            found.append((gap, p))
    gaps, top_p = np.array(found[:CRITICAL], np.float32).T
    x = np.full((CRITICAL, V), -np.inf, np.float32)
    x[:, [10, 20, 30]] = np.stack([gaps, gaps, np.zeros_like(gaps)], axis=1)
    return rng.permuted(x, axis=1), {"top_p": top_p}


@pytest.fixture(scope="module")
def case():
    """Key, logits and settings of the specification, and the tokens of the library."""
    with jax.debug_nans(False):  # NaN settings are meant
        parts = [mixed_rows(), temperature_rows(), filter_rows(), min_p_rows(), top_p_rows()]
        x = np.concatenate([rows for rows, _ in parts])
        settings = {
            name: jnp.asarray(
                np.concatenate(
                    [np.broadcast_to(part.get(name, off), len(rows)) for rows, part in parts]
                ).astype(dtype)
            )
            for name, (off, dtype) in OFF.items()
        }
    key = jax.random.key(0)
    return key, x, settings, np.asarray(sample(key, x, **settings))


def differences(case, changes):
    key, x, settings, tokens = case
    return np.count_nonzero(mutated(changes).sample(key, x, **settings) != tokens)


def test_specification_as_it_is(case):
    assert differences(case, []) == 0


@pytest.mark.parametrize("changes", MUTANTS.values(), ids=MUTANTS)
def test_mutant_is_caught(case, changes):
    assert differences(case, changes) > 0
