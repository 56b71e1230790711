"""Other samplers in JAX: what to install for each, and how it is called.

Their packages are imported only where they are installed, in the environments of peers.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Sampler = Callable[[Any, Any], Any]  # (key, logits [B, V]) to tokens [B]


class Peer(NamedTuple):
    """What to install, the Python it needs, and its calls, each with a setting of cells.py."""

    install: list[list[str]]  # arguments of `uv pip install`, a list for each run
    python: int
    calls: Callable[[], dict[str, tuple[str, Sampler]]]


def maxtext() -> dict[str, tuple[str, Sampler]]:
    """Its top-p comes before the temperature, so that it keeps other tokens than the rest."""
    from maxtext.inference.inference_utils import sampling

    return {
        "sampling 'weighted'": ("T", lambda key, x: sampling(x, key, "weighted", temperature=0.8)),
        "sampling 'topk'": ("k", lambda key, x: sampling(x, key, "topk", 50, temperature=0.8)),
        "sampling 'nucleus'": ("p", lambda key, x: sampling(x, key, "nucleus", 0, 0.9, 0.8)),
        "sampling 'composite'": ("k+p", lambda key, x: sampling(x, key, "composite", 50, 0.9, 0.8)),
    }


def tunix() -> dict[str, tuple[str, Sampler]]:
    from tunix.generate.sampler import sample_top_p

    def call(top_p: float, top_k: int | None) -> Sampler:
        return lambda key, x: sample_top_p(x[:, None], key, 0.8, top_p, top_k)[0]

    return {
        "sample_top_p(1, None)": ("T", call(1.0, None)),
        "sample_top_p(0.9, None)": ("p", call(0.9, None)),
        "sample_top_p(0.9, 50)": ("k+p", call(0.9, 50)),
    }


def transformers() -> dict[str, tuple[str, Sampler]]:
    import jax
    from transformers.generation import flax_logits_process as flax

    def call(*warpers: Any) -> Sampler:
        warp = flax.FlaxLogitsProcessorList([flax.FlaxTemperatureLogitsWarper(0.8), *warpers])
        # As in generate(): the warpers ignore the tokens and the length.
        return lambda key, x: jax.random.categorical(key, warp(x, x, 1))

    top_k, top_p = flax.FlaxTopKLogitsWarper(50), flax.FlaxTopPLogitsWarper(0.9)
    return {
        "temperature, top-k": ("k", call(top_k)),
        "temperature, top-p": ("p", call(top_p)),
        "temperature, top-k, top-p": ("k+p", call(top_k, top_p)),
    }


def distrax() -> dict[str, tuple[str, Sampler]]:
    from distrax import Categorical

    return {"Categorical": ("T", lambda key, x: Categorical(logits=x / 0.8).sample(seed=key))}


def gemma() -> dict[str, tuple[str, Sampler]]:
    from gemma.gm import text

    def call(method: Any) -> Sampler:
        return lambda key, x: method.get_next_tokens(x, rng=key)

    return {
        "RandomSampling": ("T", call(text.RandomSampling(temperature=0.8))),
        "TopkSampling": ("k", call(text.TopkSampling(temperature=0.8, k=50))),
        "TopPSampling": ("p", call(text.TopPSampling(temperature=0.8, p=0.9))),
    }


def easydel() -> dict[str, tuple[str, Sampler]]:
    import jax.numpy as jnp
    from easydel.inference.sampling_funcs import sample_top_p_efficient

    def call(top_k: int) -> Sampler:
        def run(key: Any, x: Any) -> Any:
            p, temperature = (jnp.full(len(x), value, x.dtype) for value in (0.9, 0.8))
            return sample_top_p_efficient(x, p, temperature, key, top_k)

        return run

    return {
        "sample_top_p_efficient, of the top 64 only": ("p", call(64)),
        "sample_top_p_efficient, of the top 50": ("k+p", call(50)),
    }


def plain_jax() -> dict[str, tuple[str, Sampler]]:
    import jax
    import jax.numpy as jnp

    def draw(key: Any, ranked: Any, order: Any) -> Any:
        """A token of a ranking, after top-p, by Gumbel numbers for each of it."""
        probabilities = jax.nn.softmax(ranked)
        ranked = jnp.where(jnp.cumsum(probabilities, 1) - probabilities < 0.9, ranked, -jnp.inf)
        rank = jax.random.categorical(key, ranked)
        return jnp.take_along_axis(order, rank[:, None], 1)[:, 0]

    def sort_and_draw(key: Any, x: Any) -> Any:
        """The usual sampler: sort, accumulate, mask, draw V Gumbel numbers."""
        order = jnp.argsort(x, descending=True)
        ranked = jnp.take_along_axis(x, order, 1) / 0.8
        ranked = jnp.where(jnp.arange(x.shape[1])[None] < 50, ranked, -jnp.inf)
        return draw(key, ranked, order)

    def top_k_and_draw(key: Any, x: Any) -> Any:
        """Where only the first few count: no sort, where the device has such a top_k."""
        return draw(key, *jax.lax.top_k(x / 0.8, 50))

    return {
        "lax.top_k, cumsum, categorical": ("k+p", top_k_and_draw),
        "jax.random.categorical": ("T", lambda key, x: jax.random.categorical(key, x / 0.8)),
        "argsort, cumsum, categorical": ("k+p", sort_and_draw),
    }


PEERS = {
    "jax": Peer([["jax"]], 11, plain_jax),
    "maxtext": Peer([["jax"], ["--no-deps", "maxtext==0.2.5"]], 12, maxtext),
    "google-tunix": Peer([["google-tunix==0.1.7"]], 11, tunix),
    "transformers": Peer([["transformers==4.55.4", "flax"]], 11, transformers),
    "distrax": Peer([["distrax==0.1.9"]], 11, distrax),
    "gemma": Peer([["gemma==4.0.1"]], 12, gemma),
    "easydel": Peer([["easydel==0.3.0", "pillow"]], 11, easydel),
}
