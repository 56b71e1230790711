"""Time `sample` on a GPU, beside softmax and samplers that sort, in one process, taking turns.

    python benchmarks/gpu.py                 a table, OUTPUT.json and OUTPUT.png

A call is timed until its tokens are there. Beside that: what the GPU was busy for, in how many
kernels, and how many times that is what it takes to read the logits once, at the bandwidth at which
this GPU copies. PyTorch is compared where it is installed. cells.py explains the names of settings.
"""

import argparse
import gzip
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory to PyTorch

import cells
import jax
import jax.numpy as jnp
import plots
import report
import timing
from samplers import PEERS


def torch_samplers(logits: jax.Array) -> timing.Calls:
    """PyTorch's usual samplers of the same logits, which wait for the tokens."""
    import torch

    if not torch.cuda.is_available():
        return {}
    x = torch.from_dlpack(logits).clone()

    def done(tokens: Any) -> Any:
        torch.cuda.synchronize()
        return tokens

    def draw(x: Any) -> Any:
        return torch.multinomial(torch.softmax(x, dim=-1), 1)

    def top_p(x: Any, order: Any) -> Any:
        probabilities = torch.softmax(x, dim=-1)
        late = probabilities.cumsum(dim=-1) - probabilities >= 0.9
        return order.gather(1, draw(x.masked_fill(late, -torch.inf)))

    return {
        "PyTorch: multinomial (T)": lambda: done(draw(x / 0.8)),
        "PyTorch: topk (k+p)": lambda: done(top_p(*(x / 0.8).topk(50))),
        "PyTorch: sort (p)": lambda: done(top_p(*(x / 0.8).sort(descending=True))),
    }


def kernels(calls: timing.Calls) -> dict[str, dict[str, Any]]:
    """How many kernels and copies each call is, and the milliseconds they take."""
    pause = 0.03  # tells the calls apart
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for call in calls.values():
                jax.block_until_ready(call())
                time.sleep(pause)
        (file,) = Path(folder).rglob("perfetto_trace.json.gz")
        trace = json.loads(gzip.decompress(file.read_bytes()))
    events = trace["traceEvents"] if isinstance(trace, dict) else trace
    names = [
        (event["name"], event["pid"], event.get("tid"), event["args"].get("name", ""))
        for event in events
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
    ]
    devices = {pid for kind, pid, _, name in names if kind == "process_name" and "GPU" in name}
    streams = {(pid, tid) for _, pid, tid, name in names if pid in devices and "Stream" in name}
    ran = [e for e in events if e.get("ph") == "X" and (e["pid"], e.get("tid")) in streams]
    groups: list[list[float]] = []
    end = -1e9
    for event in sorted(ran, key=lambda event: float(event["ts"])):
        if event["ts"] - end > 1e6 * pause / 2:
            groups.append([])
        groups[-1].append(event["dur"] / 1e3)
        end = max(end, event["ts"] + event["dur"])
    if len(groups) != len(calls):  # not a GPU, or one whose times are not told
        print(f"Of {len(calls)} calls the profiler tells {len(groups)} apart.")
        return {}
    return {
        name: {"kernels": len(group), "busy_ms": sum(group)}
        for name, group in zip(calls, groups, strict=True)
    }


def bandwidth(rounds: tuple[int, int]) -> float:
    """Bytes a millisecond that a copy reads and writes."""
    x = jnp.zeros(2**26, jnp.float32)
    times = timing.interleaved({"copy": partial(jax.jit(lambda x: x + 1), x)}, 1, rounds)
    return 2 * x.nbytes / min(times["copy"])


def time_cell(cell: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one cell."""
    x, key = cells.make_logits(**cell), jax.random.key(0)
    programs: dict[str, Any] = {"softmax": (jax.nn.softmax, (x,))}
    for name in arguments.setting:
        call = cells.make_call(name, cell["batch"])
        programs[name] = (call.function, (call.key, x, call.settings))
    for name, (setting, sampler) in PEERS["jax"].calls().items():
        programs[f"{name} ({setting})"] = (sampler, (key, x))

    def compiled(program: Any) -> Callable[[], Any]:
        function, values = program
        values = jax.tree.map(jnp.asarray, values)
        return partial(jax.jit(function).lower(*values).compile(), *values)

    with ThreadPoolExecutor() as threads:
        calls = dict(zip(programs, threads.map(compiled, programs.values()), strict=True))
    others = torch_samplers(x) if find_spec("torch") else {}
    times = timing.interleaved(calls | others, arguments.seconds, arguments.rounds)
    found = timing.summary(times)
    for name, facts in kernels(calls).items():
        found[name] |= facts
    return cell | {"rounds": len(times["softmax"]), "calls": found}


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32, 128, 256])
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[131072])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--logits", nargs="+", default=["real"], choices=cells.LOGITS)
    parser.add_argument("--setting", nargs="+", default=cells.CALLS, choices=cells.CALLS)
    parser.add_argument("--seconds", type=float, default=2, help="for a cell")
    parser.add_argument("--rounds", nargs=2, type=int, default=(20, 200), metavar=("MIN", "MAX"))
    parser.add_argument("--output", type=Path, default=Path("build/gpu"))
    arguments = parser.parse_args(command_line)
    rate = bandwidth(arguments.rounds)
    about = timing.machine() | {"copy_bytes_per_second": 1e3 * rate}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    records = []
    axes = {name: getattr(arguments, name) for name in ("batch", "vocabulary", "dtype", "logits")}
    for point in itertools.product(*axes.values()):
        record = time_cell(dict(zip(axes, point, strict=True)), arguments)
        records.append(record)
        print(f"\n{report.title(record)}")
        batch, vocabulary, dtype, _ = point
        read = batch * vocabulary * jnp.dtype(dtype).itemsize / rate
        for name, of in record["calls"].items():
            line = f"{name:38} {of['ms']:8.3f} ms {of['ratio']:7.2f} x softmax"
            if "kernels" in of:
                line += f", busy {of['busy_ms']:.3f} ms in {of['kernels']} kernels"
                line += f", {of['busy_ms'] / read:.1f} reads"
            print(line, flush=True)
        file = arguments.output.with_suffix(".json")
        file.write_text(json.dumps(about | {"records": records}, indent=1))
        jax.clear_caches()
    if plots.available():
        plots.ratios(records, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
