"""Times of calls that take turns, and what a program costs to compile and to hold."""

import os
import platform
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Calls = dict[str, Callable[[], jax.Array]]


def interleaved(calls: Calls, seconds: float, rounds: tuple[int, int]) -> dict[str, list[float]]:
    """Milliseconds of each call in each round.

    A round makes every call once, in an order of its own. There are as many as fit in `seconds`,
    but at least the first of `rounds` and at most the second.
    """
    for call in calls.values():  # compile, and touch the memory
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    least, most = rounds
    end = time.perf_counter() + seconds
    for done in range(most):
        if done >= least and time.perf_counter() > end:
            break
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Quartiles and median of each call in ms, and the ratio of its median to softmax's."""
    quartiles = {name: np.percentile(t, [25, 50, 75]).tolist() for name, t in times.items()}
    return {
        name: {"ms": q[1], "quartiles_ms": [q[0], q[2]], "ratio": q[1] / quartiles["softmax"][1]}
        for name, q in quartiles.items()
    }


def program_facts(function: Callable[..., Any], key: Any, x: Any, *args: Any) -> dict[str, Any]:
    """Seconds to trace and compile with nothing cached; temporaries as multiples of float32 `x`."""
    jax.clear_caches()
    start = time.perf_counter()
    compiled = jax.jit(function).lower(key, x, *args).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    temporaries = memory.temp_size_in_bytes / (4 * x.size) if memory else None
    return {"compile_s": seconds, "temporaries": temporaries}


def machine() -> dict[str, Any]:
    return {
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }
