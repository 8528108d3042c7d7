"""The results as Markdown: ratios of a step, held-out errors, and errors by batch size."""

from collections.abc import Sequence
from statistics import mean

from benchmarks.pages import markdown_table, plain, replace_between
from benchmarks.records import Record, find
from benchmarks.trainable.batches import BOOKS, FEATURES, RATIOS
from benchmarks.trainable.plan import OWN, QUANTIZERS, SHAPES
from benchmarks.trainable.steps import PEER
from benchmarks.trainable.training import SETS

__all__ = ["MARKS", "replace_tables", "tables"]

MARKS = (
    "<!-- tables of training, written by `--draw` -->",
    "<!-- end of tables of training -->",
)
MIB = 2**20


def replace_tables(page: str, records: Sequence[Record]) -> str:
    """Return a page of the docs with the tables between the two marks written anew."""
    return replace_between(page, MARKS, tables(records))


def tables(records: Sequence[Record]) -> str:
    """Return all tables, each under its heading."""
    parts = {
        "### Step": _steps(records),
        "### Learning": _errors(records),
        "### Batch sizes": _batches(records),
    }
    found = [f"{heading}\n\n{table}" for heading, table in parts.items() if table]
    return "\n\n".join(found) or "Not measured yet."


def _steps(records: Sequence[Record]) -> str:
    rows = []
    for shape in sorted(SHAPES.values(), key=lambda s: (s.size, s.dim, s.depth, s.rows)):
        name = shape.name
        times = _measures(records, "speed", name, "both")
        memory = [_measures(records, "memory", name, quantizer) for quantizer in (OWN, PEER)]
        if times is None and None in memory:
            continue
        cells = [f"{shape.depth}×{shape.size:,}", str(shape.dim), f"{shape.rows:,}"]
        if times is None:
            cells += ["–"] * 3
        else:
            cells += [plain(1000 * times[quantizer]["cpu_seconds"]) for quantizer in (OWN, PEER)]
            cells.append(f"{times['ratio']['cpu_seconds']:.2f}")
        if None in memory:
            cells += ["–"] * 3
        else:
            own, peer = (taken["extra_bytes"] for taken in memory)  # type: ignore[index]
            cells += [plain(own / MIB), plain(peer / MIB), f"{own / peer:.2f}"]
        rows.append(cells)
    head = [
        *("codes", "dim", "vectors"),
        *("ms, ours", "theirs", "ratio", "MiB, ours", "theirs", "ratio"),
    ]
    return markdown_table(head, rows) if rows else ""


def _errors(records: Sequence[Record]) -> str:
    rows = []
    for name, data in SETS.items():
        for quantizer, (title, *_) in QUANTIZERS.items():
            runs = [
                record["measures"]
                for record in find(records, part="error", quantizer=quantizer)
                if record["case"].rsplit("-", 1)[0] == name
            ]
            if not runs:
                continue
            levels = zip(*(run["usage"] for run in runs), strict=True)
            rows.append(
                [
                    data.title,
                    title,
                    f"{mean(run['relative_error'] for run in runs):.4f}",
                    " ".join(f"{run['relative_error']:.4f}" for run in runs),
                    " ".join(f"{mean(level):.3f}" for level in levels),
                    plain(mean(run["training_cpu_seconds"] for run in runs)),
                ]
            )
    head = ["data", "quantizer", "error", "by seed", "usage by level", "training, CPU s"]
    return markdown_table(head, rows) if rows else ""


def _batches(records: Sequence[Record]) -> str:
    rows = []
    for features, spread in FEATURES.items():
        for books, kind in BOOKS.items():
            found = [
                _measures(records, "batches", f"{features}-{books}-{ratio:g}", OWN)
                for ratio in RATIOS
            ]
            if not any(found):
                continue
            errors = [f"{m['relative_error']:.4f}" if m else "–" for m in found]
            gaps = [abs(m["relative_error"] / m["training_error"] - 1) for m in found if m]
            least = min(m["usage"] for m in found if m)
            rows.append([f"{spread}, {kind}", *errors, f"{least:.3f}", f"{max(gaps):.2%}"])
    head = ["vectors per entry", *(f"{ratio:g}" for ratio in RATIOS)]
    head += ["least usage", "evaluation against training, at most"]
    return markdown_table(head, rows) if rows else ""


def _measures(records: Sequence[Record], part: str, case: str, quantizer: str) -> dict | None:
    for record in find(records, part=part, case=case, quantizer=quantizer):
        return record["measures"]
    return None
