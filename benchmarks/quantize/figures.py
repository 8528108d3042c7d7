"""The figure of the docs page: error against the time that encoding takes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.quantize.plan import METHODS, MODELS
from benchmarks.quantize.tables import Figures
from benchmarks.quantize.vectors import DATA
from benchmarks.records import Record, find
from rqtoolkit.io.atomic import atomic_path

__all__ = ["CODE", "draw_pareto"]

CODE = "8x256"
LINES = {
    "rqtoolkit, beams 1 to 32": ("residual-1", "residual-5", "residual-16", "residual-32"),
    "rqtoolkit, refined": ("residual-5-icm", "residual-16-icm", "residual-16-perturbed"),
    "faiss RQ with tables, beams 1 to 32": (
        "faiss-rq-1-tables",
        "faiss-rq-5-tables",
        "faiss-rq-16-tables",
        "faiss-rq-32-tables",
    ),
    "faiss RQ, beams 1 to 32": ("faiss-rq-1", "faiss-rq-5", "faiss-rq-16", "faiss-rq-32"),
}
SINGLE = [name for name in METHODS if name not in {n for line in LINES.values() for n in line}]
MARKERS = "sD^v<>p*"


def draw_pareto(records: Sequence[Record], path: Path) -> None:
    """Draw held-out error against encode time at 8 bytes, a panel for each data set.

    Args:
        records: Results, of 8 bytes on one data set at least.
        path: Picture to write.
    """
    sets = {data: own for data in DATA if (own := find(records, data=data, code=CODE))}
    figure, axes = plt.subplots(
        1, len(sets), figsize=(4.2 * len(sets), 4.6), squeeze=False, layout="constrained"
    )
    for axis, (data, own) in zip(axes[0], sets.items(), strict=True):
        _draw_panel(axis, Figures(own))
        axis.set(title=DATA[data][0], xlabel="encoding, µs a vector", xscale="log")
    axes[0][0].set_ylabel("held-out relative error, 8 bytes")
    handles = {}
    for axis in axes[0]:
        lines, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def _draw_panel(axis: Axes, f: Figures) -> None:
    """Draw beams as lines and the other methods as points, the same colours in every panel."""
    for number, (label, names) in enumerate(LINES.items()):
        _plot(axis, f, names, "o-", label, f"C{number}")
    for number, name in enumerate(SINGLE):
        color = "C0" if name in ("grouped", "neural") else f"C{4 + number % 6}"
        _plot(axis, f, [name], MARKERS[number], MODELS[METHODS[name].model].replace("`", ""), color)
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_locator(LogLocator())
    axis.grid(alpha=0.3)


def _plot(axis: Axes, f: Figures, names: Sequence[str], style: str, label: str, color: str) -> None:
    points = [
        (1e6 / rate, error)
        for name in names
        if (rate := f.rate(name, "encode")) and (error := f.error(name)) is not None
    ]
    if points:
        axis.plot(*zip(*points, strict=True), style, label=label, color=color, markersize=5)
