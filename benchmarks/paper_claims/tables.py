"""The results as Markdown tables: mean over seeds, with the spread where there are several."""

from collections.abc import Callable, Sequence
from statistics import mean, stdev

from benchmarks.paper_claims.results import Record, find

__all__ = ["BITS", "DISTANCE", "ERROR", "figure_of", "tables"]

Figure = Callable[[dict], float]
"""Takes one number out of the measures of a record."""

ERROR: tuple[str, Figure, str] = ("error", lambda m: 100 * m["relative_error"][-1], "%")
BITS: tuple[str, Figure, str] = ("bits an image", lambda m: m["bits_per_image"], "")
DISTANCE: tuple[str, Figure, str] = ("FD", lambda m: m["frechet_distance"], "")
USAGE: tuple[str, Figure, str] = ("entries used", lambda m: 100 * mean(m["usage"]), "%")
CODE_BITS: tuple[str, Figure, str] = ("bits per code", lambda m: mean(m["bits_per_code"]), "")
ACCURACY: tuple[str, Figure, str] = ("class accuracy", lambda m: 100 * m["class_accuracy"], "%")
COVERAGE: tuple[str, Figure, str] = ("coverage", lambda m: 100 * m["coverage"], "%")

LAYOUT: dict[str, tuple[tuple[str, ...], tuple[tuple[str, Figure, str], ...]]] = {
    "Depth against codebook size": (
        (
            "depth1",
            "depth2",
            "depth4",
            "depth8",
            "size64",
            "size1024",
            "size4096",
            "depth2-size64",
        ),
        (BITS, ERROR, DISTANCE, USAGE),
    ),
    "Shared and separate codebooks": (("depth4", "per-depth"), (ERROR, DISTANCE, USAGE)),
    "Targets of stage 2": (
        ("hard", "soft-0.0005", "soft-0.002", "soft-paper", "hard-few", "soft-few"),
        (CODE_BITS, DISTANCE, COVERAGE, ACCURACY),
    ),
    "Code grids: reconstruction": (("depth4", "long"), (BITS, ERROR, DISTANCE)),
    "Code grids: samples": (("hard", "long-hard"), (CODE_BITS, DISTANCE, COVERAGE, ACCURACY)),
    "Lineage": (("kl", "kl-strong", "vq", "depth4"), (BITS, ERROR, DISTANCE, ACCURACY)),
}


def figure_of(records: Sequence[Record], task: str, figure: Figure) -> tuple[float, float] | None:
    """Return mean and standard deviation over the seeds; None without a result."""
    values = [figure(record["measures"]) for record in find(records, task=task)]
    if not values:
        return None
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def tables(records: Sequence[Record]) -> str:
    """Return every comparison of every data set as Markdown."""
    parts = []
    for data in sorted({record["data"] for record in records}, reverse=True):
        own = find(records, data=data)
        for title, (tasks, columns) in LAYOUT.items():
            heads = [name for name, _, _ in columns]
            lines = [f"### {title}: {data}", "", "| training | " + " | ".join(heads) + " | seeds |"]
            lines.append("|---" * (len(heads) + 2) + "|")
            for task in tasks:
                if found := find(own, task=task):
                    cells = [_cell(own, task, figure, unit) for _, figure, unit in columns]
                    lines.append(f"| {task} | " + " | ".join(cells) + f" | {len(found)} |")
            if len(lines) > 4:
                parts.append("\n".join(lines))
        if timings := find(own, task="sampling-time"):
            parts.append(_timing_table(data, timings))
    return "\n\n".join(parts) + "\n"


def _cell(records: Sequence[Record], task: str, figure: Figure, unit: str) -> str:
    value, spread = figure_of(records, task, figure) or (float("nan"), 0.0)
    several = len(find(records, task=task)) > 1
    return _plain(value) + (f" ± {_plain(spread)}" if several else "") + (unit and f" {unit}")


def _plain(value: float) -> str:
    """Write a number with three significant digits and no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _timing_table(data: str, timings: Sequence[Record]) -> str:
    """Tabulate CPU milliseconds an image of drawing codes, and their ratio."""
    lines = [f"### Code grids: sampling time: {data}", ""]
    lines += ["| batch | short and deep, ms an image | long and flat, ms an image | ratio |"]
    lines += ["|---|---|---|---|"]
    for size in timings[0]["measures"]["hard"]:
        short, long = (
            mean(record["measures"][name][size] for record in timings)
            for name in ("hard", "long-hard")
        )
        lines.append(f"| {size} | {1000 * short:.3g} | {1000 * long:.3g} | {long / short:.2f} |")
    return "\n".join(lines)
