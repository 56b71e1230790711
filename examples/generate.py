"""Stream several chats at once from SmolLM2-135M, every row with settings of its own.

    python examples/generate.py
    python examples/generate.py --prompt "Tell me a joke." --temperature 0 0.7 1.5

A setting takes one value or several: row i gets the i-th, starting over when they run out.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import smollm2
from jax.experimental import io_callback
from terminal import choose_view, progress

import sampling_jax


class Row(NamedTuple):
    prompt: str
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


DEMO = [
    Row("What is the capital of France?", temperature=0.0),
    Row("Write two lines of verse about the sea at night.", temperature=0.8, top_p=0.9),
    Row("Suggest a name for a small bakery, and say why it fits.", temperature=0.7, top_k=40),
    Row("Begin a story about a lighthouse keeper who finds a map.", temperature=1.2, min_p=0.1),
]
SETTINGS = ("temperature", "top_k", "top_p", "min_p")


# On the device


class State(NamedTuple):
    step: jax.Array
    logits: jax.Array  # [row, vocabulary]
    cache: smollm2.Cache
    done: jax.Array  # [row]


def generate(
    config: smollm2.Config,
    max_tokens: int,
    before: Callable[[jax.Array], None],  # called on the host before each step's sampling
    after: Callable[[jax.Array, jax.Array], None],  # and after it, with tokens and done
    params: smollm2.Params,
    prompts: jax.Array,  # [row, time], padded on the left
    padding: jax.Array,  # [row]
    key: jax.Array,
    settings: dict[str, jax.Array],  # each [row]
) -> jax.Array:
    """The number of steps it took; the tokens leave through `after` as they come."""
    rows, width = prompts.shape
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    cache = smollm2.empty_cache(config, rows, width + max_tokens)
    logits, cache = smollm2.forward(config, params, prompts, 0, padding, cache)

    def unfinished(state: State) -> jax.Array:
        return (state.step < max_tokens) & ~state.done.all()

    def advance(state: State) -> State:
        step, logits, cache, done = state
        io_callback(before, None, logits[0, 0], ordered=True)
        # A key for each row and step: what a row draws does not depend on its neighbours.
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, step)
        tokens = sampling_jax.sample(keys, logits, **settings)
        done |= jnp.isin(tokens, jnp.array(config.stop_ids))
        io_callback(after, None, tokens, done, ordered=True)
        slot = width + step
        logits, cache = smollm2.forward(config, params, tokens[:, None], slot, padding, cache)
        return State(step + 1, logits, cache, done)

    start = State(jnp.array(0), logits, cache, jnp.zeros(rows, bool))
    return jax.lax.while_loop(unfinished, advance, start).step


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[jax.Array, jax.Array]:
    # On the left, so that every row's next token goes to the same slot of the cache.
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    padded = [[0] * gap + [*prompt] for gap, prompt in zip(padding, prompts, strict=True)]
    return jnp.array(padded), jnp.array(padding)


# On the host


def main() -> None:
    args = parse()
    if missing := smollm2.missing():
        sys.exit(f"Packages are missing: {missing}")
    # No Python handler runs while the device works, so these two go to the system.
    for name in {"SIGINT", "SIGPIPE"} & set(dir(signal)):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")

    rows = rows_from(args)
    times: defaultdict[str, float] = defaultdict(float)
    last_lap = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last_lap
        now = time.perf_counter()
        times[name] += now - last_lap
        last_lap = now

    with progress("loading the weights"):
        config, params, tokenizer = smollm2.load()
    lap("load")

    prompts, padding = pad_left([tokenizer.encode(smollm2.chat(row.prompt)).ids for row in rows])
    if prompts.shape[1] + args.max_tokens > config.context:
        sys.exit(f"The longest prompt and --max-tokens exceed {config.context} tokens.")
    settings = {name: jnp.array([getattr(row, name) for row in rows]) for name in SETTINGS}
    view = choose_view([heading(row) for row in rows])
    ids: list[list[int]] = [[] for _ in rows]
    finished = [False] * len(rows)

    def before(_: jax.Array) -> None:
        lap("model" if "sampling" in times else "prompts")

    def after(tokens: jax.Array, done: jax.Array) -> None:
        lap("sampling")
        for row, token in enumerate(np.asarray(tokens)):
            if not finished[row]:
                ids[row].append(int(token))
        finished[:] = np.asarray(done).tolist()
        view(tokenizer.decode_batch(ids), finished, False)
        lap("display")

    arguments = (params, prompts, padding, jax.random.key(args.seed), settings)
    with progress("compiling"):
        run = jax.jit(partial(generate, config, args.max_tokens, before, after))
        compiled = run.lower(*arguments).compile()
    print(file=sys.stderr, flush=True)
    lap("compile")
    compiled(*arguments).block_until_ready()
    lap("model")
    view(tokenizer.decode_batch(ids), finished, True)

    count, total = sum(map(len, ids)), sum(times.values())
    rate = count / (total - times["load"] - times["compile"])
    shares = ", ".join(f"{name} {t:.2f} s ({t / total:.0%})" for name, t in times.items())
    print(f"{count} tokens, {rate:.0f} tokens/s once compiled\ntime: {shares}", file=sys.stderr)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", action="append", help="a question; repeat it for more rows")
    parser.add_argument("--temperature", type=float, nargs="+", help="0 is greedy (default 0.7)")
    parser.add_argument("--top-k", type=int, nargs="+", help="0 is off, as by default")
    parser.add_argument("--top-p", type=float, nargs="+", help="1 is off, as by default")
    parser.add_argument("--min-p", type=float, nargs="+", help="0 is off, as by default")
    parser.add_argument("--max-tokens", type=int, default=80, help="for each row (default 80)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same text")
    args = parser.parse_args(arguments)
    if not all(value >= 0 for value in args.temperature or []):
        parser.error("--temperature must be 0 or more")
    if args.max_tokens < 1:
        parser.error("--max-tokens must be 1 or more")
    return args


def rows_from(args: argparse.Namespace) -> list[Row]:
    rows = [Row(prompt) for prompt in args.prompt] if args.prompt else DEMO
    given: dict[str, list[Any]] = {name: getattr(args, name) or [] for name in SETTINGS}
    count = max(len(rows), *map(len, given.values()))
    return [
        rows[i % len(rows)]._replace(
            **{name: values[i % len(values)] for name, values in given.items() if values}
        )
        for i in range(count)
    ]


def heading(row: Row) -> str:
    words = [
        f"temperature {row.temperature:g}" if row.temperature > 0 else "greedy",
        f"top-k {row.top_k}" if row.top_k > 0 else "",
        f"top-p {row.top_p:g}" if row.top_p < 1 else "",
        f"min-p {row.min_p:g}" if row.min_p > 0 else "",
    ]
    return f"[{', '.join(filter(None, words))}] {' '.join(row.prompt.split())}"


if __name__ == "__main__":
    main()
