"""Several tokens for each row, one after another."""

import numpy as np

from references.speculative import kept_weights, random_words
from sampling_jax import reference


def draw_row(bits, w, replace):
    tokens = []
    for bit in bits:
        token = reference.draw(bit, w) if w.any() else -1
        if not replace and token >= 0:
            w[token] = 0
        tokens.append(token)
    return tokens


def sample_n(key_or_bits, logits, n, replace=True, **settings):
    batch = logits.shape[:-1]
    bits = key_or_bits
    if getattr(bits, "dtype", None) != np.uint64:
        bits = random_words(key_or_bits, batch, n)
    settings = {name: np.broadcast_to(value, batch) for name, value in settings.items()}
    tokens = np.empty((*batch, n), np.int32)
    with np.errstate(all="ignore"):
        for i in np.ndindex(batch):
            w = kept_weights(logits[i], {name: value[i] for name, value in settings.items()})
            tokens[i] = draw_row(bits[i], w, replace)
    return tokens
