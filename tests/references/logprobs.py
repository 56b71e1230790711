"""Log-probabilities and ranks of one row after another, sorted and in float64."""

import numpy as np

from sampling_jax import reference
from sampling_jax._arguments import Settings


def offsets(x):
    """float32 distances of a clean row to its largest logit; None in it cannot be drawn."""
    top = x.max()
    if np.isposinf(top):
        return np.where(x == top, np.float32(0), np.float32(-np.inf))
    with np.errstate(all="ignore"):
        return x - top if top > -np.inf else x


def log_softmax(offset, temperature=1.0):
    with np.errstate(all="ignore"):
        quotient = np.where(offset > -np.inf, offset / np.float32(temperature), -np.inf)
    p = np.exp(quotient.astype(np.float64))
    return quotient - np.log(p.sum()) if p.sum() else np.full(p.size, -np.inf)


def logprobs(logits, tokens, top):
    x = reference.clean(logits)
    results = []
    for i in np.ndindex(tokens.shape):
        offset = offsets(x[i])
        log_p = log_softmax(offset)
        ranking = [t for t in np.argsort(-x[i], kind="stable") if offset[t] > -np.inf]
        drawable = tokens[i] in ranking
        best = ranking[:top]
        missing = top - len(best)
        results.append(
            (
                log_p[tokens[i]] if drawable else -np.inf,
                ranking.index(tokens[i]) + 1 if drawable else -1,
                best + [-1] * missing,
                [log_p[t] for t in best] + [-np.inf] * missing,
            )
        )
    columns = zip(*results, strict=True)
    shapes = ((), (), (top,), (top,))
    return [np.array(c).reshape(tokens.shape + s) for c, s in zip(columns, shapes, strict=True)]


def processed(logits, settings):
    """For each row: offsets, temperature, what can be drawn without filters, and with them."""
    for x, temperature, _, kept in reference.rows(logits, Settings(**settings)):
        offset = offsets(x)
        possible = offset > -np.inf
        if not temperature > reference.GREEDY:
            temperature = np.float32(1)
            possible &= np.arange(x.size) == np.argmax(x)
            kept = possible
        elif reference.LOG2_E / temperature < reference.SMALLEST_NORMAL:
            temperature = np.float32(np.inf)  # all weigh the same, as in `sample`
        yield offset, temperature, possible, kept & possible


def log_probs(logits, settings):
    """float64 [..., V], those of all tokens under what is kept."""
    rows = [
        log_softmax(np.where(kept, offset, -np.inf).astype(np.float32), temperature)
        for offset, temperature, _, kept in processed(logits, settings)
    ]
    return np.array(rows).reshape(logits.shape)


def log_prob(logits, tokens, settings):
    every = log_probs(logits, settings)
    result = np.full(tokens.shape, -np.inf)
    for i in np.ndindex(tokens.shape):
        if 0 <= tokens[i] < logits.shape[-1]:
            result[i] = every[i][tokens[i]]
    return result


def log_kept_mass(logits, settings):
    result = []
    for offset, temperature, possible, kept in processed(logits, settings):
        all_of_it = np.exp(log_softmax(np.where(possible, offset, -np.inf), temperature))
        mass = all_of_it[kept].sum()
        result.append(
            np.log1p(-all_of_it[~kept].sum()) if mass > 0.5 else np.log(mass) if mass else -np.inf
        )
    return np.array(result).reshape(logits.shape[:-1])
