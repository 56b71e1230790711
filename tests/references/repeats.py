"""Bans and penalties on repetition for single rows, in plain Python."""

import numpy as np


def banned(text, n):
    """The tokens that would complete an n-gram of the text, as Hugging Face finds them."""
    if n <= 0 or len(text) + 1 < n:
        return set()
    continuations = {}
    for i in range(len(text) - n + 1):
        *start, last = text[i : i + n]
        continuations.setdefault(tuple(start), set()).add(last)
    return continuations.get(tuple(text[len(text) - n + 1 :]), set())


def match_length(text, position, breakers):
    """How many tokens before the position equal those at the end, up to a breaker."""
    n = 0
    while n < position and text[position - 1 - n] == text[-1 - n] not in breakers:
        n += 1
    return n


def dry(text, multiplier, base, allowed_length, breakers=()):
    """The penalty of each token that would prolong a repetition, float64."""
    longest = {}
    for position in range(1, len(text)):
        n = match_length(text, position, breakers)
        if n >= max(allowed_length, 1) and text[position] not in breakers:
            longest[text[position]] = max(n, longest.get(text[position], 0))
    largest = float(np.finfo(np.float32).max)
    return {
        token: min(float(multiplier) * float(base) ** min(n - allowed_length, 50), largest)
        for token, n in longest.items()
    }
