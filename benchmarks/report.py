"""Tables of what run.py finds."""

import itertools
import sys
from typing import Any

import numpy as np
from plots import Lines

Record = dict[str, Any]  # batch, vocabulary, dtype, logits, rounds, calls; sweep and parameter


def title(record: Record) -> str:
    sweep = f", {record['sweep']}" if "sweep" in record else ""
    shape = f"[{record['batch']}, {record['vocabulary']}]"
    return f"{shape} {record['dtype']}, {record['logits']} logits{sweep}"


def print_record(record: Record) -> None:
    """A table: ms, ratio to softmax with quartiles, temporaries / logits in float32, compilation.

    A sweep also has its largest ratio between neighbours.
    """
    softmax = record["calls"]["softmax"]["ms"]
    calls = {name: call for name, call in record["calls"].items() if name != "softmax"}
    print(f"\n{title(record)}: softmax {softmax:.3f} ms, {record['rounds']} rounds")
    header = "ms  x softmax  (quartiles)" + ("" if "sweep" in record else "       memory  compile")
    print(f"  {record.get('parameter', ''):12}        {header}")
    for name, call in calls.items():
        low, high = (ms / softmax for ms in call["quartiles_ms"])
        line = (
            f"  {name:12}{call['ms']:10.3f} {call['ratio']:10.2f}  {f'({low:.2f} {high:.2f})':15}"
        )
        if "compile_s" in call:
            line += f" {call['temporaries']:7.2f}  {call['compile_s']:5.1f} s"
        print(line)
    if "sweep" in record:
        steps = {}
        for (a, before), (b, after) in itertools.pairwise(calls.items()):
            ratio = after["ms"] / before["ms"]
            steps[f"{a} and {b}"] = max(ratio, 1 / ratio)
        worst = max(steps, key=steps.__getitem__)
        print(f"  largest ratio of neighbours: {steps[worst]:.2f}, between {worst}")
    sys.stdout.flush()


def print_worst(found: list[Record]) -> None:
    """The worst cell of each setting, over all records."""
    print("\nworst ratio to softmax, and where")
    for name in list(found[0]["calls"])[1:]:  # all but softmax
        record = max(found, key=lambda record: record["calls"][name]["ratio"])
        print(f"  {name:10} {record['calls'][name]['ratio']:8.2f} {title(record)}")


def scaling_lines(found: list[Record], axis: str) -> Lines:
    """Sizes on one axis, ms at each and the slope on logarithmic axes, of every call."""
    other, value = ("batch", 8) if axis == "vocabulary" else ("vocabulary", 131072)
    on_line = [record for record in found if record[other] == value]
    sizes = [record[axis] for record in on_line]
    result = {}
    for name in on_line[0]["calls"] if len(sizes) > 1 else ():
        ms = [record["calls"][name]["ms"] for record in on_line]
        result[name] = sizes, ms, float(np.polyfit(np.log(sizes), np.log(ms), 1)[0])
    return result
