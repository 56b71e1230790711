"""Mirostat v2, one row after another: the kept tokens in integers, the surprise in float64."""

import numpy as np

from references.speculative import random_words
from sampling_jax import reference


def kept(x, w, mu):
    """Bool [V]: the most likely token, and those before the first one that surprises too much."""
    # 2**31 * 2**-mu; a weight of temperature log2(e) is one of base 2.
    power = reference.weights(np.array([0, -max(mu, np.float32(0))], np.float32), reference.LOG2_E)
    least = max(1, -(-int(power[1]) * int(w.sum(dtype=np.uint64)) // 2**31))
    order = np.argsort(-x, kind="stable")
    n = 1
    while n < x.size and w[order[n]] >= least:
        n += 1
    mask = np.zeros(x.size, bool)
    mask[order[:n]] = True
    return mask


def surprise(x, token):
    """Bits, in float64, of what is drawn with probability softmax(x)."""
    below = np.where(x == x.max(), 0, np.float64(x.max()) - x)
    return (np.log(np.exp(-below).sum()) + below[token]) / np.log(2)


def mirostat(key_or_bits, logits, state, tau=5.0, eta=0.1):
    batch = logits.shape[:-1]
    bits = key_or_bits
    if getattr(bits, "dtype", None) != np.uint64:
        bits = random_words(key_or_bits, batch, 1)[..., 0]
    numbers = [np.broadcast_to(np.asarray(v, np.float32), batch) for v in (state, tau, eta)]
    states, tokens = np.empty(batch), np.full(batch, -1, np.int32)
    with np.errstate(all="ignore"):
        for i in np.ndindex(batch):
            x = reference.clean(logits[i])
            mu, tau, eta = (number[i] for number in numbers)
            states[i] = mu
            if x.max() > -np.inf:
                w = reference.weights(x, np.float32(1))
                tokens[i] = reference.draw(bits[i], np.where(kept(x, w, mu), w, np.uint32(0)))
                step = np.float64(eta) * (surprise(x, tokens[i]) - np.float64(tau))
                states[i] = np.float64(mu) - step
    return states, tokens
