"""Time `sample` beside other samplers in JAX, on the same logits.

    python benchmarks/peers.py --install FOLDER    an environment for each; a few GB, minutes
    python benchmarks/peers.py FOLDER              time them, and write OUTPUT.json and OUTPUT.png

Each runs in an environment of its own, with the newest JAX it allows. `sample` and softmax take
turns with it in the same process, so ratios are within one process. All are jitted with their
settings fixed, which most of the others need. The names of settings are explained in cells.py.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from shutil import which
from typing import Any

import plots
from samplers import PEERS, Sampler

ROOT = Path(__file__).parents[1]
INSTALLED = "installed"


def interpreter(minor: int) -> str:
    """A Python 3 of at least that minor version."""
    if sys.version_info >= (3, minor):
        return sys.executable
    for newer in range(minor, minor + 3):
        own = (Path.home() / ".pyenv/versions").glob(f"3.{newer}.*/bin/python3")
        for found in filter(None, (which(f"python3.{newer}"), *map(str, own))):
            if not subprocess.run([found, "-c", "import venv"], capture_output=True).returncode:
                return found
    raise RuntimeError(f"no Python 3.{minor} or newer was found")


def install(name: str, folder: Path) -> str:
    """Make the environment of a peer, in ten minutes at most; what became of it."""
    peer, python = PEERS[name], folder / name / "bin/python"
    uv = [python, "-m", "uv", "pip", "install", "--python", python]
    first, *rest = peer.install
    end = time.monotonic() + 600
    try:
        for command in (
            [interpreter(peer.python), "-m", "venv", "--clear", folder / name],
            [python, "-m", "pip", "install", "uv"],
            [*uv, "-e", ROOT, *first],
            *([*uv, *arguments] for arguments in rest),
        ):
            left = end - time.monotonic()
            subprocess.run(command, capture_output=True, text=True, timeout=left, check=True)
    except subprocess.CalledProcessError as error:
        return f"not installed: {error.stderr.strip()[-500:]}"
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return f"not installed: {error}"
    return INSTALLED


def work(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one peer, in the process that has it installed."""
    import cells
    import jax
    import timing

    shape = arguments.batch, arguments.vocabulary, arguments.dtype
    x, key = cells.make_logits(*shape, arguments.logits), jax.random.key(0)
    samplers: dict[str, tuple[str, Sampler]] = {}
    for label, (setting, sampler) in PEERS[name].calls().items():
        own = partial(cells.public, settings=cells.SETTINGS[setting])
        samplers |= {label: (setting, sampler), f"sampling_jax {setting}": (setting, own)}
    calls, facts = {}, {}
    for label, (setting, sampler) in samplers.items():
        facts[label] = {"setting": setting}
        try:
            facts[label] |= timing.program_facts(sampler, key, x)
            calls[label] = partial(jax.jit(sampler), key, x)
        except Exception as error:  # another project's: whatever it is, it is the result
            facts[label] |= {"error": f"{type(error).__name__}: {error}"[:500]}
    calls["softmax"] = partial(jax.jit(jax.nn.softmax), x)
    times = timing.interleaved(calls, arguments.seconds, arguments.rounds)
    found = timing.summary(times)
    return {
        "calls": {label: fact | found.get(label, {}) for label, fact in facts.items()},
        "softmax": found["softmax"],
        "rounds": len(times["softmax"]),
        "machine": timing.machine(),
        "versions": {
            package: metadata.version(package)
            for package in dict.fromkeys([name, "jax", "jaxlib", "numpy"])
        },
    }


def time_peer(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one peer, from its environment; an `error` where there is none."""
    folder: Path = arguments.folder
    state = folder / f"{name}.txt"
    outcome = state.read_text() if state.exists() else "not installed: run --install first"
    if outcome != INSTALLED:
        return {"error": outcome}
    result = folder / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [folder / name / "bin/python", __file__, *sys.argv[1:], "--worker", name]
    this_tree = os.environ | {"PYTHONPATH": str(ROOT)}  # whichever tree it was installed from
    run = subprocess.run(command, capture_output=True, text=True, env=this_tree)
    if run.returncode:
        return {"error": run.stderr.strip()[-500:]}
    return dict(json.loads(result.read_text()))


def print_record(name: str, record: dict[str, Any]) -> None:
    if "error" in record:
        print(f"\n{name}: {record['error']}", flush=True)
        return
    calls, softmax = record["calls"], record["softmax"]["ms"]
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    print(f"\n{versions} (softmax {softmax:.3f} ms, {record['rounds']} rounds)")
    for label, call in calls.items():
        line = f"  {call['setting']:4} {label:44}"
        if "error" in call:
            line += call["error"]
        else:
            own = calls[f"sampling_jax {call['setting']}"]["ms"]
            line += f"{call['ms']:9.2f} ms {call['ratio']:8.2f} x softmax"
            line += f" {call['ms'] / own:8.2f} x sampling_jax, memory x {call['temporaries']:.2f}"
        print(line, flush=True)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--peer", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--logits", default="real")
    parser.add_argument("--seconds", type=float, default=30, help="for a peer")
    parser.add_argument("--rounds", type=int, nargs=2, default=(5, 200), metavar=("MIN", "MAX"))
    parser.add_argument("--output", type=Path, default=Path("build/peers"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        record = work(arguments.worker, arguments)
        (arguments.folder / f"{arguments.worker}.json").write_text(json.dumps(record))
        return
    if arguments.install:
        for name in arguments.peer:
            outcome = install(name, arguments.folder)
            (arguments.folder / f"{name}.txt").write_text(outcome)
            print(f"{name}: {outcome}", flush=True)
        return
    found = {}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.peer:
        found[name] = time_peer(name, arguments)
        print_record(name, found[name])
        arguments.output.with_suffix(".json").write_text(json.dumps(found, indent=1))
    if plots.available():
        plots.peers(found, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
