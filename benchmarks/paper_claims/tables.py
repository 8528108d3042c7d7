"""The results as Markdown tables: mean over seeds, with the spread where there are several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from benchmarks.pages import markdown_table, plain, replace_between
from benchmarks.records import Record, find

__all__ = ["BITS", "DISTANCE", "ERROR", "TITLES", "figure_of", "replace_tables", "tables"]

TITLES = {"fashion": "Fashion-MNIST", "cifar": "CIFAR-10"}
MARKS = ("<!-- tables, written by the command above -->", "<!-- end of tables -->")

Figure = Callable[[dict], float]
"""Takes one number out of the measures of a record."""


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, its number and the unit behind it."""

    head: str
    figure: Figure
    unit: str = ""


BITS = Column("bits an image", lambda m: m["bits_per_image"])
ERROR = Column("error", lambda m: 100 * m["relative_error"][-1], " %")
DISTANCE = Column("FD", lambda m: m["frechet_distance"])
USED = Column("entries used", lambda m: 100 * mean(m["usage"]), " %")
ACCURACY = Column("class accuracy", lambda m: 100 * m["class_accuracy"], " %")
COVERAGE = Column("coverage", lambda m: 100 * m["coverage"], " %")
CODE_BITS = Column("bits per code", lambda m: mean(m["bits_per_code"]))
MODEL_BITS = Column("bits an image", lambda m: 64 * mean(m["bits_per_code"]))

LAYOUT: dict[str, tuple[Mapping[str, str], tuple[Column, ...]]] = {
    "Depth and codebook size": (
        {
            "depth1": "1 code of 256",
            "depth2": "2 codes of 256",
            "depth4": "4 codes of 256",
            "depth8": "8 codes of 256",
            "size64": "1 code of 64",
            "size1024": "1 code of 1024",
            "size4096": "1 code of 4096",
            "depth2-size64": "2 codes of 64",
        },
        (BITS, ERROR, DISTANCE, USED),
    ),
    "Shared and separate codebooks": (
        {"depth4": "one table for all levels", "per-depth": "a table for each level"},
        (ERROR, DISTANCE, USED),
    ),
    "Targets of the transformer": (
        {
            "hard": "hard",
            "soft-0.0005": "soft, relative τ 0.0005",
            "soft-0.002": "soft, relative τ 0.002",
            "soft-paper": "soft, τ 0.5 unscaled",
            "hard-few": "hard, 1,000 images",
            "soft-few": "soft, relative τ 0.002, 1,000 images",
        },
        (CODE_BITS, DISTANCE, COVERAGE, ACCURACY),
    ),
    "Short and long grid, reconstructions": (
        {"depth4": "4×4×4", "long": "8×8×1"},
        (BITS, ERROR, DISTANCE, ACCURACY),
    ),
    "Short and long grid, samples": (
        {"hard": "4×4×4", "long-hard": "8×8×1"},
        (MODEL_BITS, DISTANCE, COVERAGE, ACCURACY),
    ),
    "VAE, VQ-VAE, RQ-VAE": (
        {
            "kl": "VAE, KL weight 1e-6",
            "kl-strong": "VAE, KL weight 1e-4",
            "vq": "VQ-VAE, 1 code of 256",
            "depth4": "RQ-VAE, 4 codes of 256",
        },
        (BITS, ERROR, DISTANCE, ACCURACY),
    ),
}


def figure_of(records: Sequence[Record], task: str, column: Column) -> tuple[float, float] | None:
    """Return mean and standard deviation over the seeds; None without a result."""
    values = [column.figure(record["measures"]) for record in find(records, task=task)]
    if not values:
        return None
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def tables(records: Sequence[Record]) -> str:
    """Return every comparison of every data set as Markdown."""
    parts = []
    for data, title in TITLES.items():
        own = find(records, data=data)
        found = [table for head in LAYOUT if (table := _table(own, head))]
        if timings := find(own, task="sampling-time"):
            found.append(_timing_table(timings))
        if found:
            seeds = len({record["seed"] for record in own})
            parts += [f"### {title}, {seeds} seed{'s' if seeds > 1 else ''}", *found]
    return "\n\n".join(parts)


def _table(records: Sequence[Record], title: str) -> str:
    """Return one table, empty where nothing of it has a result."""
    labels, columns = LAYOUT[title]
    rows = [
        [label, *(_cell(records, task, column) for column in columns)]
        for task, label in labels.items()
        if find(records, task=task)
    ]
    return markdown_table([title, *(column.head for column in columns)], rows) if rows else ""


def _timing_table(timings: Sequence[Record]) -> str:
    """Tabulate CPU milliseconds an image of drawing codes, and their ratio."""
    rows = []
    for size in timings[0]["measures"]["hard"]:
        short, long = (
            mean(record["measures"][name][size] for record in timings)
            for name in ("hard", "long-hard")
        )
        rows.append([size, plain(1000 * short), plain(1000 * long), f"{long / short:.2f}"])
    return markdown_table(["Images at a time", "4×4×4, CPU ms an image", "8×8×1", "ratio"], rows)


def _cell(records: Sequence[Record], task: str, column: Column) -> str:
    value, spread = figure_of(records, task, column) or (float("nan"), 0.0)
    plus_minus = f" ± {plain(spread)}" if spread else ""
    return f"{plain(value)}{plus_minus}{column.unit}"


def replace_tables(page: str, records: Sequence[Record]) -> str:
    """Return a page of the docs with the tables between its two marks written anew."""
    return replace_between(page, MARKS, tables(records))
