"""Typical, epsilon, eta, n-sigma and XTC filters of one clean row, sorted, in integers."""

import numpy as np

from sampling_jax import reference
from sampling_jax.reference import HEAVIEST, LOG2_E, SMALLEST_NORMAL, share

ONE = np.float32(1)
BELOW_ONE = np.float32(1 - 2**-24)
LARGEST = np.finfo(np.float32).max


def weights(x):
    """uint32 weights at temperature 1; 0 of what cannot be drawn."""
    with np.errstate(all="ignore"):
        return np.where(x > -np.inf, reference.weights(x, ONE), np.uint32(0))


def surprise(x):
    with np.errstate(all="ignore"):
        return np.where(x == x.max(), np.float32(0), (x.max() - x) * LOG2_E)


def rounded(total):
    """An integer as the float32 that the sum of its two parts gives."""
    return np.float32(total >> 19) * np.float32(2**19) + np.float32(total & (2**19 - 1))


def mean_surprise(x):
    w = weights(x)
    parts = (w.astype(np.float32) * np.minimum(surprise(x), np.float32(31))).astype(np.uint64)
    return rounded(int(parts.sum())) / rounded(int(w.sum(dtype=np.uint64)))


def drawable(x):
    return x.max() > -np.inf


def typical_p(x, p):
    keep = x > -np.inf
    if not drawable(x) or not p < 1:
        return keep
    with np.errstate(all="ignore"):
        distance = np.abs(surprise(x) - mean_surprise(x))
    distance = np.where(keep, reference.clean(distance), np.inf)
    order = np.argsort(distance, kind="stable")
    running = np.cumsum(weights(x)[order], dtype=np.uint64)
    target = max(1, share(max(p, 0), running[-1]))
    n = int(np.searchsorted(running, np.uint64(target))) + 1
    mask = np.zeros(x.size, bool)
    mask[order[:n]] = True
    return mask & keep


def heavy(x, threshold):
    """What comes before the first token that weighs less; the most likely one always."""
    light = x[weights(x) < threshold].max(initial=-np.inf)
    return ((x > light) | (x == x.max())) & (x > -np.inf)


def part(p, total):
    """The weight that is the share p of a total; 0 is off."""
    return max(1, share(min(p, BELOW_ONE), total)) if p >= SMALLEST_NORMAL else 0


def total_of(x):
    return int(weights(x).sum(dtype=np.uint64))


def epsilon_cutoff(x, epsilon):
    return heavy(x, part(epsilon, total_of(x)))


def eta_cutoff(x, epsilon):
    if not (drawable(x) and epsilon >= SMALLEST_NORMAL):
        return x > -np.inf
    pair = np.array([0, -mean_surprise(x) / LOG2_E], np.float32)
    # 2**-z of the mean z itself, which no logit need be: the second of two rows of one token.
    typical = exp2(mean_surprise(x))
    assert abs(int(typical) - int(reference.weights(pair, ONE)[1])) <= 2e-6 * HEAVIEST
    root = np.sqrt(np.float32(min(epsilon, 1)))
    return heavy(x, min(part(epsilon, total_of(x)), part(root, int(typical))))


def exp2(z):
    """2**31 * 2**-z as a weight."""
    whole = np.floor(z)
    value = reference.EXP2[5]
    for coefficient in reference.EXP2[4::-1]:
        value = coefficient - value * (z - whole)
    return (np.asarray(value).view(np.uint32) << np.uint32(7)) >> np.uint32(whole)


def top_n_sigma(x, n):
    keep = x > -np.inf
    if not drawable(x) or not n > 0 or n == np.inf:
        return keep
    with np.errstate(all="ignore"):
        distance = np.where(x == x.max(), np.float32(0), np.minimum(x.max() - x, LARGEST))
    distance = reference.clean(distance)
    exponent = int(distance[keep].max().view(np.uint32)) >> 23
    factor = np.float32(2.0 ** (min(max(269 - exponent, 1), 254) - 127))
    steps = (np.where(keep, distance, 0) * factor).astype(np.uint64)
    count = np.float32(keep.sum())
    squares = [int((steps * part).sum()) for part in (steps >> np.uint64(1), steps & np.uint64(1))]
    halves, rest = (rounded(total) / count for total in squares)
    middle = rounded(int(steps.sum())) / count
    sigma = np.sqrt(np.maximum(2 * halves + rest - middle * middle, np.float32(0)))
    return keep & (steps.astype(np.float32) <= n * sigma)


def xtc(x, threshold, probability):
    """The logarithm of what each probability is multiplied by, but for a common factor, float64."""
    change = np.zeros(x.size)
    bound, total = part(threshold, total_of(x)), total_of(x)
    if not drawable(x) or not bound or bound > HEAVIEST or not probability > 0:
        return change
    choices = np.flatnonzero(heavy(x, bound))
    ranked = choices[np.argsort(-x[choices], kind="stable")]
    dropped = ranked[:-1]
    lost = int(weights(x)[dropped].sum(dtype=np.uint64))
    with np.errstate(divide="ignore"):
        change[:] = np.log1p(min(probability, 1) * lost / (total - lost))
        change[dropped] = np.log1p(-np.float64(min(probability, 1)))
    return change
