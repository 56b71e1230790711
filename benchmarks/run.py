"""Time `sample` beside `jax.nn.softmax` of the same logits, in one process, taking turns.

    python benchmarks/run.py --quick     the cells that matter most, in minutes
    python benchmarks/run.py             every cell, in about two hours
    python benchmarks/run.py --cliffs    one parameter in small steps: does one of them cost much?
    python benchmarks/run.py --scaling   against the vocabulary, and against the batch

Each prints a table and writes OUTPUT.json, after every cell, and OUTPUT.png. Every axis has an
option; cells.py explains the names of the settings.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cells
import jax
import jax.numpy as jnp
import numpy as np
import plots
import report
import timing
from report import Record

ALL: dict[str, list[Any]] = {
    "batch": [1, 8, 32, 128],
    "vocabulary": [32768, 49152, 131072, 262144],
    "dtype": ["float32", "bfloat16"],
    "logits": list(cells.LOGITS),
    "setting": cells.CALLS,
}
ONE = ALL | {"batch": [8], "vocabulary": [131072], "dtype": ["float32"], "logits": ["real"]}
MODES = {
    "all": ALL,
    "quick": ONE | {"batch": [8, 32]},
    "cliffs": ONE,
    "scaling": ONE
    | {"batch": [2**i for i in range(8)], "vocabulary": [2**i for i in range(15, 21)]},
}

softmax = jax.jit(jax.nn.softmax)


def time_cell(arguments: argparse.Namespace, cell: Record, calls: dict[str, cells.Call]) -> Record:
    """The record of one cell, whose logits live no longer than this call."""
    x = cells.make_logits(**cell)
    thunks: timing.Calls = {"softmax": partial(softmax, x)}
    for name, call in calls.items():
        thunks[name] = partial(call.function, call.key, x, call.settings)
    times = timing.interleaved(thunks, arguments.seconds, arguments.rounds)
    return cell | {"rounds": len(times["softmax"]), "calls": timing.summary(times)}


def time_settings(arguments: argparse.Namespace) -> Iterator[Record]:
    """A record of all settings for each cell. Logits change first, as they compile nothing."""
    for shape in itertools.product(arguments.batch, arguments.vocabulary, arguments.dtype):
        batch, vocabulary, dtype = shape
        if arguments.mode == "scaling" and batch != 8 and vocabulary != 131072:
            continue  # on neither line
        calls = {name: cells.make_call(name, batch) for name in arguments.setting}
        x = jax.ShapeDtypeStruct((batch, vocabulary), jnp.dtype(dtype))
        facts = {
            name: timing.program_facts(call.function, call.key, x, call.settings)
            for name, call in calls.items()
        }
        for logits in arguments.logits:
            cell = {"batch": batch, "vocabulary": vocabulary, "dtype": dtype, "logits": logits}
            record = time_cell(arguments, cell, calls)
            for name in calls:
                record["calls"][name] |= facts[name]
            yield record
        jax.clear_caches()


def geometric(first: float, last: float, factor: float) -> list[float]:
    return np.geomspace(first, last, 1 + round(np.log(last / first) / np.log(factor))).tolist()


def sweeps(vocabulary: int) -> dict[str, tuple[str, list[float], dict[str, float]]]:
    """The parameter that changes, its values, and the settings that stay."""
    top_k = sorted({round(k) for k in geometric(1, vocabulary, 1.25)})
    top_p = [*np.arange(0.05, 0.96, 0.05).round(2).tolist(), 0.97, 0.98, 0.99, 0.995, 0.999]
    temperature, min_p = geometric(0.1, 3, 1.15), geometric(1e-6, 1, 1.6)
    return {
        "top_k": ("top_k", top_k, cells.T),
        "top_k, top_p=0.9": ("top_k", top_k, cells.SETTINGS["p"]),
        "top_p": ("top_p", top_p, cells.T),
        "top_p, top_k=50": ("top_p", top_p, cells.SETTINGS["k"]),
        "temperature": ("temperature", temperature, {}),
        "temperature, top_p=0.9": ("temperature", temperature, {"top_p": 0.9}),
        "min_p": ("min_p", min_p, cells.T),
    }


def time_sweeps(arguments: argparse.Namespace) -> Iterator[Record]:
    """A record for each sweep of each cell, whose calls are named by the value."""
    key = jax.random.key(0)
    axes = {name: getattr(arguments, name) for name in ("batch", "vocabulary", "dtype", "logits")}
    for point in itertools.product(*axes.values()):
        cell = dict(zip(axes, point))
        for sweep, (parameter, values, fixed) in sweeps(cell["vocabulary"]).items():
            if not arguments.sweep or sweep in arguments.sweep:
                settings = [fixed | {parameter: value} for value in values]
                calls = {f"{s[parameter]:g}": cells.Call(cells.public, key, s) for s in settings}
                yield {"sweep": sweep, "parameter": parameter} | time_cell(arguments, cell, calls)
        jax.clear_caches()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    for mode in list(MODES)[1:]:
        parser.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode)
    parser.set_defaults(mode="all")
    for axis, values in ALL.items():
        options = {"choices": values} if axis in ("logits", "setting") else {}
        options |= {"type": type(values[0]), "metavar": axis.upper()}
        parser.add_argument(f"--{axis}", nargs="+", help=", ".join(map(str, values)), **options)
    names = list(sweeps(8))
    helps = f"of --cliffs: {'; '.join(names)}"
    parser.add_argument("--sweep", nargs="+", choices=names, metavar="SWEEP", help=helps)
    parser.add_argument("--seconds", type=float, default=10, help="for a cell or a sweep")
    parser.add_argument(
        "--rounds", type=int, nargs=2, default=(5, 200), metavar=("MIN", "MAX"), help="of a cell"
    )
    parser.add_argument("--output", type=Path, default=Path("build/benchmark"))
    result = parser.parse_args(arguments)
    for axis, values in MODES[result.mode].items():
        if getattr(result, axis) is None:
            setattr(result, axis, values)
    return result


def main(command_line: list[str] | None = None) -> None:
    arguments = parse(command_line)
    found: list[Record] = []
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    file, picture = arguments.output.with_suffix(".json"), arguments.output.with_suffix(".png")
    about = timing.machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    if not plots.available():
        print("There will be no picture: pip install -e '.[bench]'")
    for record in (time_sweeps if arguments.mode == "cliffs" else time_settings)(arguments):
        report.print_record(record)
        found.append(record)
        file.write_text(json.dumps(about | {"records": found}, indent=1))
    if arguments.mode == "scaling":
        axes = {axis: report.scaling_lines(found, axis) for axis in ("vocabulary", "batch")}
        for axis, lines in axes.items():
            for name, (sizes, _, slope) in lines.items():
                print(f"{axis} {sizes[0]} to {sizes[-1]}: {name:10} slope {slope:.2f}")
    elif arguments.mode == "all":
        report.print_worst(found)
    if plots.available():
        if arguments.mode == "scaling":
            plots.scaling(axes, picture)
        elif arguments.mode == "cliffs":
            plots.sweeps(found, picture)
        else:
            plots.ratios(found, picture)
    print(f"\nwrote {file}")


if __name__ == "__main__":
    main()
