"""Constraints on single rows, in plain Python."""

import numpy as np


def bias(x, ids, values):
    """Sums in float64; +inf is the largest float32, and a ban wins."""
    largest = float(np.finfo(np.float32).max)
    result = x.astype(np.float64)
    for token, value in zip(ids.tolist(), values.tolist(), strict=True):
        if 0 <= token < len(x) and not np.isnan(value):
            result[token] += max(min(value, largest), -largest)
    result = np.where(np.isfinite(x), np.clip(result, -largest, largest), result)
    for token, value in zip(ids.tolist(), values.tolist(), strict=True):
        if 0 <= token < len(x) and value == -np.inf:
            result[token] = -np.inf
    with np.errstate(over="ignore"):
        return result.astype(np.float32)


def allows(words, token):
    """Whether a bitmask of 32-bit words allows a token."""
    return token // 32 < len(words) and bool(int(words[token // 32]) >> token % 32 & 1)
