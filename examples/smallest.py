"""Walk through a nursery rhyme at random: no weights, the same sampling.

The next word depends on the last one alone, and is as likely as it is common after it.
"""

import jax
import jax.numpy as jnp

import sampling_jax

RHYME = """this is the farmer sowing his corn that kept the cock that crowed in the morn
that waked the priest all shaven and shorn that married the man all tattered and torn
that kissed the maiden all forlorn that milked the cow with the crumpled horn
that tossed the dog that worried the cat that killed the rat that ate the malt
that lay in the house that Jack built"""
WORDS = sorted(set(RHYME.split()))

ids = jnp.array([WORDS.index(word) for word in RHYME.split()])
counts = jnp.zeros((len(WORDS), len(WORDS))).at[ids, jnp.roll(ids, -1)].add(1)
LOGITS = jnp.log(counts)  # -inf for what never follows, and so is never drawn


@jax.jit
def walk(key: jax.Array, temperature: jax.Array, top_k: jax.Array) -> jax.Array:
    """Twelve words for each row, [row, 12], every row with its own key and settings."""
    rows = temperature.shape[0]
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))

    def step(last: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, i)
        word = sampling_jax.sample(keys, LOGITS[last], temperature, top_k)
        return word, word

    start = jnp.full(rows, WORDS.index("the"), jnp.int32)
    return jax.lax.scan(step, start, jnp.arange(12))[1].T


temperature = jnp.array([0.0, 0.5, 1.0, 1.0])
top_k = jnp.array([0, 0, 0, 3])  # 0 is off
for t, k, row in zip(temperature, top_k, walk(jax.random.key(0), temperature, top_k), strict=True):
    print(f"temperature {t:.1f}, top_k {k}: the", *(WORDS[i] for i in row))
