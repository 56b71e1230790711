"""One step of policy-gradient training on truncated samples, and its importance ratios.

The policy is the distribution that is drawn from, filters and all: under it the ratio of new to
old probabilities is 1 until the parameters change. The model's own softmax, which knows nothing
of the filters, is another distribution: with it the ratio is wrong from the start.
"""

import jax
import jax.numpy as jnp

from sampling_jax import log_prob, sample

SETTINGS = {"temperature": 0.8, "top_k": 8, "top_p": 0.95}
WORDS, ROWS = 32, 256

params = jax.random.normal(jax.random.key(0), (WORDS, WORDS))  # logits of the next word
prompts = jnp.arange(ROWS) % WORDS
words = sample(jax.random.key(1), params[prompts], **SETTINGS)
rewards = jnp.where(words % 2 == 0, 1.0, -1.0)  # even words are good

policy = jax.jit(lambda params: log_prob(params[prompts], words, **SETTINGS))
plain = jax.jit(lambda params: log_prob(params[prompts], words, SETTINGS["temperature"]))
old = policy(params)


def loss(params: jax.Array) -> jax.Array:
    return -jnp.mean(rewards * jnp.exp(policy(params) - old))


ratio = jnp.exp(policy(params) - old)
assert (ratio == 1).all()
mixed = jnp.exp(plain(params) - old)
assert (mixed < 1).all()  # filters make every word that is left more likely
stepped = params - 50 * jax.grad(loss)(params)
moved = jnp.exp(policy(stepped) - old)
assert jnp.isfinite(jax.grad(loss)(params)).all()
assert (moved != 1).any()
assert loss(stepped) < loss(params)

for name, values in (
    ("on policy", ratio),
    ("new without filters, old with", mixed),
    ("after a step, good words", moved[rewards > 0]),
    ("after a step, bad words", moved[rewards < 0]),
):
    print(f"{name:30s} ratio {values.min():.3f} to {values.max():.3f}, mean {values.mean():.3f}")
