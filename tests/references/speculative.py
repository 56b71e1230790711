"""Speculative decoding in Python integers, one row and one draft token after another."""

import numpy as np

from sampling_jax import reference
from sampling_jax._arguments import Settings
from sampling_jax._bits import check_key, random_bits

LOG2_E = reference.LOG2_E


def kept_weights(logits, settings):
    """uint32 [V] of one row of logits: 0 for what temperature and filters drop."""
    ((x, temperature, w, kept),) = reference.rows(logits[None], Settings(**settings))
    if not temperature > reference.GREEDY:
        kept = np.arange(x.size) == np.argmax(x)
    return np.where(kept & (x > -np.inf), w, np.uint32(0))


def float_total(w):
    """float32 of the sum of weights: of its high and its 19 low bits, each rounded, and added."""
    total = int(w.sum(dtype=np.uint64))
    return np.float32(total >> 19) * np.float32(2**19) + np.float32(total & (2**19 - 1))


def probabilities(w):
    """Python integers of weights, in units of 2**-30 / log2(e)."""
    unit = LOG2_E / max(float_total(w), np.float32(1)) * np.float32(2**30)
    return (w.astype(np.float32) * unit).astype(np.uint32).tolist()


def residual(p, q, w):
    """Weights of the token that takes the place of a rejected one."""
    rest = [max(a - b, 0) for a, b in zip(p, q, strict=True)]
    return np.array(rest if any(rest) else w, np.uint32)


def is_accepted(bits, p, q):
    return int(bits) * q >> 64 < p


def draw(bits, w):
    return reference.draw(bits, w) if w.any() else -1


def verify_row(bits, tokens, draft_logits, target_logits, settings, length):
    """Tokens and the number of accepted ones, from bits [K + 1]: K to accept, and one to draw."""
    emitted = []
    for i in range(min(max(length, 0), len(tokens))):
        w = kept_weights(target_logits[i], settings)
        p, q = probabilities(w), probabilities(kept_weights(draft_logits[i], settings))
        token = int(tokens[i])
        if not (0 <= token < len(p) and is_accepted(bits[i], p[token], q[token])):
            break
        emitted.append(token)
    else:
        i, p = len(emitted), None
    if p is None:
        last = draw(bits[-1], kept_weights(target_logits[i], settings))
    else:
        last = draw(bits[-1], residual(p, q, w))
    padding = [-1] * (len(tokens) - len(emitted))
    return [*emitted, last, *padding], len(emitted)


def random_words(key, batch, count):
    """uint64 [*batch, count]: of one key, or of one for each row."""
    keys = check_key(key, batch)
    if keys.shape == ():
        words = np.asarray(random_bits(keys, (*batch, count)), np.uint64)
    else:
        rows = [random_bits(keys[i], (count,)) for i in np.ndindex(batch)]
        words = np.array(rows, np.uint64).reshape(*batch, count, 2)
    return (words[..., 0] << np.uint64(32)) | words[..., 1]


def speculative_verify(key_or_bits, tokens, draft_logits, target_logits, length=None, **settings):
    *batch, drafts = tokens.shape
    batch = tuple(batch)
    bits = key_or_bits
    if getattr(bits, "dtype", None) != np.uint64:
        bits = random_words(key_or_bits, batch, drafts + 1)
    length = np.broadcast_to(drafts if length is None else length, batch)
    settings = {name: np.broadcast_to(value, batch) for name, value in settings.items()}
    results = []
    with np.errstate(all="ignore"):
        for i in np.ndindex(batch):
            row = {name: value[i] for name, value in settings.items()}
            arguments = (bits[i], tokens[i], draft_logits[i], target_logits[i], row, int(length[i]))
            results.append(verify_row(*arguments))
    emitted, accepted = zip(*results, strict=True)
    shape = (*batch, drafts + 1)
    return np.array(emitted, np.int32).reshape(shape), np.array(accepted, np.int32).reshape(batch)
