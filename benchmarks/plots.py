"""Pictures of what run.py and peers.py find; none without matplotlib."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Lines = dict[str, tuple[list[int], list[float], float]]  # sizes, ms, slope


def available() -> bool:
    return find_spec("matplotlib") is not None


def figure(panels: int, width: float = 6.5, height: float = 4.5) -> tuple[Any, list[Any]]:
    """A figure of panels in rows of at most three."""
    from matplotlib.figure import Figure

    columns = min(panels, 3)
    rows = -(-panels // columns)
    result = Figure((columns * width, rows * height), layout="constrained")
    axes = result.subplots(rows, columns, squeeze=False, sharey=True).flat
    for empty in axes[panels:]:
        empty.set_axis_off()
    return result, list(axes[:panels])


def powers_of_two(panel: Any, axes: str) -> None:
    """Make axes of the panel logarithmic, with ticks written out."""
    for axis in axes:
        getattr(panel, f"set_{axis}scale")("log", base=2)
        getattr(panel, f"{axis}axis").set_major_formatter(
            lambda x, _: f"{x:.0f}" if x >= 1 else f"{x:.3g}"
        )


def ratios(records: list[Record], path: Path) -> None:
    """A point for each cell and setting: the colour is the logits, the marker is the batch."""
    names = [name for name in records[0]["calls"] if name != "softmax"]
    kinds = list(dict.fromkeys(record["logits"] for record in records))
    batches = list(dict.fromkeys(record["batch"] for record in records))
    result, (panel,) = figure(1, 9, 3 + 0.4 * len(names))
    for record in records:
        kind, batch = kinds.index(record["logits"]), batches.index(record["batch"])
        shift = 0.6 * (kind + 0.5) / len(kinds) - 0.3
        panel.plot(
            [record["calls"][name]["ratio"] for name in names],
            [row + shift for row in range(len(names))],
            linestyle="",
            marker="osD^v<>pP"[batch % 9],
            color=f"C{kind}",
            alpha=0.7,
        )
    for kind, name in enumerate(kinds):
        panel.plot([], [], "-", color=f"C{kind}", label=name)
    for i, batch in enumerate(batches):
        panel.plot([], [], "osD^v<>pP"[i % 9], color="grey", label=f"B={batch}")
    powers_of_two(panel, "x")
    panel.set(xlabel="times a softmax of the same logits")
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)
    result.legend(loc="outside right upper")
    result.savefig(path)


def sweeps(records: list[Record], path: Path) -> None:
    """A panel for each sweep: ratio to softmax against the parameter."""
    result, panels = figure(len(records))
    for record, panel in zip(records, panels):
        calls = {float(n): c["ratio"] for n, c in record["calls"].items() if n != "softmax"}
        panel.plot(list(calls), list(calls.values()), ".-")
        powers_of_two(panel, "y" if record["parameter"] == "top_p" else "xy")
        panel.set(xlabel=record["parameter"], ylabel="times a softmax of the same logits")
        shape = f"[{record['batch']}, {record['vocabulary']}] {record['dtype']}"
        panel.set_title(f"{record['sweep']}\n{shape}, {record['logits']} logits", fontsize=10)
        panel.grid(alpha=0.3)
    result.savefig(path)


def scaling(axes: dict[str, Lines], path: Path) -> None:
    """Time against the vocabulary and against the batch, with slopes."""
    axes = {axis: lines for axis, lines in axes.items() if lines}
    if not axes:
        return
    result, panels = figure(len(axes))
    for panel, (axis, lines) in zip(panels, axes.items()):
        for name, (sizes, ms, slope) in lines.items():
            style = "k--" if name == "softmax" else ".-"
            panel.plot(sizes, ms, style, label=f"{name}, slope {slope:.2f}")
        powers_of_two(panel, "xy")
        panel.set(xlabel=axis, ylabel="ms")
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    result.savefig(path)


def peers(records: dict[str, Record], path: Path) -> None:
    """A bar for each call, and one beside it for `sample` with its setting: times a softmax."""
    bars = {
        f"{peer}: {label} ({call['setting']})": (
            call["ratio"], record["calls"][f"sampling_jax {call['setting']}"]["ratio"]
        )
        for peer, record in records.items()
        for label, call in record.get("calls", {}).items()
        if "ratio" in call and not label.startswith("sampling_jax")
    }  # fmt: skip
    if not bars:
        return
    result, (panel,) = figure(1, 10, 1.5 + 0.4 * len(bars))
    for i, label in enumerate(("peer", "sampling_jax")):
        rows = [row + 0.4 * i for row in range(len(bars))]
        panel.barh(rows, [pair[i] for pair in bars.values()], 0.4, label=label)
    panel.set_yticks([row + 0.2 for row in range(len(bars))], list(bars))
    powers_of_two(panel, "x")
    panel.set(xlabel="times a softmax of the same logits")
    panel.invert_yaxis()
    panel.legend()
    panel.grid(axis="x", alpha=0.3)
    result.savefig(path)
