"""What filters keep, as masks of whole batches."""

import numpy as np

from sampling_jax import reference
from sampling_jax._arguments import Settings


def kept_masks(logits, settings):
    """Bool [..., V]: what can be drawn, of a greedy row its most likely token."""
    masks = []
    for x, temperature, _, mask in reference.rows(logits, Settings(**settings)):
        if not temperature > reference.GREEDY:
            mask = np.arange(x.size) == np.argmax(x)
        masks.append(mask & (x > -np.inf))
    return np.array(masks).reshape(logits.shape)
