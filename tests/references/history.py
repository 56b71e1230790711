"""Histories and penalties of single rows, in plain NumPy and Python."""

from collections import Counter

import numpy as np


def words_of(tokens, v):
    """The packed set of the tokens in [0, v)."""
    words = [0] * -(-v // 32)
    for token in {int(token) for token in tokens if 0 <= token < v}:
        words[token // 32] |= 1 << token % 32
    return np.array(words, np.uint32)


def counts_of(tokens, v):
    counts = Counter(int(token) for token in tokens)
    return np.array([min(counts[token], 65535) for token in range(v)], np.uint16)


def penalise(x, prompt, output, repetition=None, presence=None, frequency=None):
    """One row of logits, after what vLLM does to the tokens of a prompt and an output."""
    bound = np.finfo(np.float32).max

    def number(value, off, least):
        value = np.float32(off if value is None or np.isnan(value) else value)
        return np.clip(value, least, bound)

    repetition = number(repetition, 1, -bound)
    repetition = min(repetition, np.float32(2**126)) if repetition >= 2**-126 else np.float32(1)
    presence, frequency = number(presence, 0, -bound), number(frequency, 0, -bound)
    counts = Counter(int(token) for token in output)
    seen = {*counts, *(int(token) for token in prompt)}
    result = x.astype(np.float32)
    for token in range(len(result)):
        logit = result[token]
        if np.isnan(logit):
            result[token] = -np.inf
        if not np.isfinite(logit):
            continue
        if token in seen and repetition != 1:
            logit = logit * (1 / repetition) if logit > 0 else logit * repetition
        if token in counts and frequency != 0:
            count = np.float32(min(counts[token], 65535))
            logit = logit - np.clip(frequency * count, -bound, bound)
        if token in counts and presence != 0:
            logit = logit - presence
        result[token] = np.clip(logit, -bound, bound)
    return result
