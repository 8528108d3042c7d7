"""The figures of the docs page: means over seeds, bars for the spread."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper_claims.tables import BITS, DISTANCE, ERROR, TITLES, figure_of
from benchmarks.records import Record, find
from rqtoolkit.io.atomic import atomic_path

__all__ = ["draw_figures"]

DEPTH = {
    "1, 2, 4, 8 codes of 256": (("depth1", "depth2", "depth4", "depth8"), "o-"),
    "1 code of 64, 256, 1024, 4096": (("size64", "depth1", "size1024", "size4096"), "s--"),
    "2 codes of 64": (("depth2-size64",), "D"),
    "8×8 positions of 1 code of 256": (("long",), "^"),
    "Gaussian, weak and strong prior": (("kl", "kl-strong"), "x"),
}
TARGETS = {
    "hard": "hard",
    "soft-0.0005": "τ .0005",
    "soft-0.002": "τ .002",
    "soft-paper": "τ .5 unscaled",
    "hard-few": "hard, few",
    "soft-few": "τ .002, few",
}


def draw_figures(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw error against bits for stage 1, and samples and their time for stage 2.

    Args:
        records: Results, of one data set at least.
        folder: Where the files go.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sets = {data: own for data in TITLES if (own := find(records, data=data))}
    return [
        _save(_draw_stage1(sets), folder / "paper-claims-stage1.png"),
        _save(_draw_stage2(sets), folder / "paper-claims-stage2.png"),
    ]


def _draw_stage1(sets: dict[str, list[Record]]) -> Figure:
    figure, axes = plt.subplots(
        1, len(sets), figsize=(4.6 * len(sets), 3.8), squeeze=False, layout="constrained"
    )
    for axis, (data, own) in zip(axes[0], sets.items(), strict=True):
        for label, (tasks, style) in DEPTH.items():
            points = [
                (bits[0], *error)
                for task in tasks
                if (bits := figure_of(own, task, BITS)) and (error := figure_of(own, task, ERROR))
            ]
            if points:
                x, y, spread = zip(*points, strict=True)
                axis.errorbar(x, y, spread, fmt=style, label=label, capsize=3, markersize=5)
        axis.set(title=TITLES[data], xlabel="bits an image", ylabel="held-out relative error, %")
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0][0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _draw_stage2(sets: dict[str, list[Record]]) -> Figure:
    figure, axes = plt.subplots(
        1, 2 * len(sets), figsize=(6.4 * len(sets), 3.2), squeeze=False, layout="constrained"
    )
    for number, (data, own) in enumerate(sets.items()):
        _draw_targets(axes[0][2 * number], own)
        _draw_times(axes[0][2 * number + 1], own)
        for axis in axes[0][2 * number :][:2]:
            axis.set_title(TITLES[data])
            axis.grid(alpha=0.3)
    return figure


def _draw_targets(axis: Axes, records: Sequence[Record]) -> None:
    """Draw the distance of samples by target; hard and soft pairs stand side by side."""
    there = [(task, found) for task in TARGETS if (found := figure_of(records, task, DISTANCE))]
    for place, (task, (value, spread)) in enumerate(there):
        color = "C1" if task.startswith("hard") else "C0"
        axis.bar(place, value, yerr=spread or None, color=color, capsize=3)
    axis.set_xticks(
        range(len(there)), [TARGETS[task] for task, _ in there], rotation=40, ha="right"
    )
    axis.set_ylabel("Fréchet distance of samples")


def _draw_times(axis: Axes, records: Sequence[Record]) -> None:
    """Draw CPU time an image of both code grids, by batch size."""
    timings = [record["measures"] for record in find(records, task="sampling-time")]
    for task, label in (("hard", "4×4×4"), ("long-hard", "8×8×1")) if timings else ():
        sizes = list(timings[0][task])
        means = [1000 * sum(t[task][size] for t in timings) / len(timings) for size in sizes]
        axis.plot([int(size) for size in sizes], means, "o-", label=label)
    if timings:
        axis.legend(frameon=False)
    axis.set(xscale="log", yscale="log", xlabel="images at a time", ylabel="CPU ms an image")


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
    return path
