"""Time `sample` beside `jax.nn.softmax` and samplers that sort or draw V numbers, as ratios.

All run interleaved in one process on the same logits; a ratio is one of medians.

    python benchmarks/speed.py --batch 8 --vocabulary 131072 --rounds 25
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sampling_jax import sample

REAL = Path(__file__).parents[1] / "tests/data/smollm2_logits_8x49152_f16.npy"


def inputs(batch: int, vocabulary: int) -> dict[str, np.ndarray]:
    """Logits float32 [batch, vocabulary]: a model's, tiled; normal; Zipf; all equal."""
    rng = np.random.default_rng(0)
    real = np.load(REAL).astype(np.float32)
    rows = real[np.arange(batch) % len(real)]
    zipf = -np.log1p(np.arange(vocabulary, dtype=np.float32))
    return {
        "real": np.tile(rows, -(-vocabulary // rows.shape[1]))[:, :vocabulary],
        "normal": 2.5 * rng.standard_normal((batch, vocabulary), np.float32),
        "zipf": np.stack([rng.permutation(zipf) for _ in range(batch)]),
        "equal": np.zeros((batch, vocabulary), np.float32),
    }


@jax.jit
def sorting(key: jax.Array, logits: jax.Array, temperature: float, k: int, p: float) -> jax.Array:
    """The usual sampler: sort, accumulate, mask, draw V Gumbel numbers."""
    order = jnp.argsort(logits, descending=True)
    ranked = jnp.take_along_axis(logits, order, 1) / temperature
    ranked = jnp.where(jnp.arange(logits.shape[1]) < k, ranked, -jnp.inf)
    probabilities = jax.nn.softmax(ranked)
    ranked = jnp.where(jnp.cumsum(probabilities, 1) - probabilities < p, ranked, -jnp.inf)
    rank = jax.random.categorical(key, ranked)
    return jnp.take_along_axis(order, rank[:, None], 1)[:, 0]


def median_times(calls: dict[str, Callable[[], jax.Array]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call, interleaved."""
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(t)) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    key = jax.random.key(0)

    def per_row(*choices: float) -> jax.Array:
        return jnp.asarray(rng.choice(np.array(choices), arguments.batch), jnp.float32)

    settings = {
        "greedy": {"temperature": 0.0},
        "temperature": {"temperature": 0.8},
        "top_k=50": {"temperature": 0.8, "top_k": 50},
        "top_p=0.9": {"temperature": 0.8, "top_p": 0.9},
        "both": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
        "both, min_p=0.05": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
        "by row": {
            "temperature": per_row(0.0, 0.7, 1.0, 1.3),
            "top_k": per_row(0, 1, 20, 50, 100).astype(jnp.int32),
            "top_p": per_row(0.5, 0.9, 0.95, 1.0),
        },
    }
    softmax = jax.jit(jax.nn.softmax)
    categorical = jax.jit(lambda key, x: jax.random.categorical(key, x / 0.8))
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}, {arguments}")
    for name, logits in inputs(arguments.batch, arguments.vocabulary).items():
        x = jnp.asarray(logits)
        calls: dict[str, Callable[[], jax.Array]] = {"softmax": lambda x=x: softmax(x)}
        for label, values in settings.items():
            calls[label] = lambda x=x, values=values: sample(key, x, **values)
        if name == "real":
            calls["jax.random.categorical"] = lambda x=x: categorical(key, x)
            calls["sorting, both"] = lambda x=x: sorting(key, x, 0.8, 50, 0.9)
        times = median_times(calls, arguments.rounds)
        print(f"\n{name} logits: softmax {times['softmax']:.2f} ms")
        for label, ms in times.items():
            print(f"  {label:24} {ms:9.2f} ms {ms / times['softmax']:8.2f} x softmax")


if __name__ == "__main__":
    main()
