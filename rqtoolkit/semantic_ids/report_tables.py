"""A report as tables of words and numbers, for the terminal and for the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rqtoolkit.semantic_ids.report import Report

__all__ = ["FigureTable", "as_rich", "number", "report_tables", "share"]


@dataclass(frozen=True)
class FigureTable:
    """A title, column heads, and rows of text.

    Attributes:
        title: What the table holds.
        columns: Head of each column.
        rows: As many cells each.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def report_tables(report: "Report") -> list[FigureTable]:
    """Return the tables that a report has figures for."""
    tables = [_summary(report), _levels(report), _prefixes(report)]
    if report.drift is not None:
        tables.append(_drift(report))
    return tables


def as_rich(tables: Sequence[FigureTable]) -> "RenderableType":
    """Return tables as one thing that rich prints, cells never cut."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown: list[RenderableType] = []
    for table in tables:
        drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for place, name in enumerate(table.columns):
            drawn.add_column(name, justify="right" if place else "left", no_wrap=True)
        for row in table.rows:
            drawn.add_row(*map(Text, row))
        shown += [Text(table.title, style="bold"), drawn, Text()]
    return Group(*shown[:-1])


def share(value: float | None) -> str:
    """Return a share in percent, a dash for none."""
    return "–" if value is None else f"{100 * value:.2f}%"


def number(value: float | None) -> str:
    """Return a number with four significant digits, a dash for none."""
    return "–" if value is None else f"{value:.4g}"


def _summary(report: "Report") -> FigureTable:
    rows = [
        ("items", f"{report.items:,}"),
        ("collisions", report.collisions),
        ("codebook sizes", " × ".join(map(str, report.codebook_sizes))),
        ("duplicate rate (1 − distinct / items)", share(report.duplicate_rate)),
        ("shared rate (items whose ID is not theirs alone)", share(report.shared_rate)),
        ("largest bucket (items of one ID)", f"{report.largest_bucket:,}"),
        ("Gini of the buckets", number(report.gini)),
    ]
    if report.embeddings is not None:
        found = report.embeddings
        rows.append(("duplicates among the embeddings", f"{found.duplicates:,}"))
        rows.append(("cosine of two items at random", number(found.random_cosine)))
        if found.mse:
            rows.append(("mse of the items fitted", number(found.mse_fitted)))
            rows.append(("mse of the items added", number(found.mse_added)))
    if report.groups is not None:
        rows.append(("groups", f"{report.groups.groups:,} over {report.groups.items:,} items"))
    return FigureTable("Semantic IDs", ("figure", "value"), tuple(rows))


def _levels(report: "Report") -> FigureTable:
    found = report.embeddings
    mse = found.mse if found is not None else ()
    columns = ["level", "codes", "used", "dead", "perplexity", "Gini"]
    columns += ["mse", "relative error"] if mse else []
    rows = []
    for level, figures in enumerate(report.levels):
        row = [
            "counter" if level >= report.depth else str(level),
            str(figures.codebook_size),
            str(figures.used),
            str(figures.dead),
            f"{figures.perplexity:.1f}",
            number(figures.gini),
        ]
        if found is not None and mse:
            decoded = level < len(mse)
            row.append(number(mse[level] if decoded else None))
            row.append(share(found.relative_error[level] if decoded else None))
        rows.append(tuple(row))
    return FigureTable("Levels", tuple(columns), tuple(rows))


def _prefixes(report: "Report") -> FigureTable:
    found, groups = report.embeddings, report.groups
    columns = ["first codes", "distinct", "duplicate rate", "shared rate", "largest", "Gini"]
    columns += ["cohesion"] if found is not None else []
    columns += ["purity", "shuffled"] if groups is not None else []
    rows = []
    for place, figures in enumerate(report.prefixes):
        row = [
            str(figures.length),
            f"{figures.distinct:,}",
            share(figures.duplicate_rate),
            share(figures.shared_rate),
            f"{figures.largest:,}",
            number(figures.gini),
        ]
        if found is not None:
            row.append(number(found.cohesion[place]))
        if groups is not None:
            row += [share(groups.purity[place]), share(groups.shuffled[place])]
        rows.append(tuple(row))
    return FigureTable("Prefixes", tuple(columns), tuple(rows))


def _drift(report: "Report") -> FigureTable:
    drift = report.drift
    assert drift is not None
    rows = [
        ("against version", drift.against),
        ("items in common", f"{drift.common:,}"),
        ("added", f"{drift.added:,}"),
        ("removed", f"{drift.removed:,}"),
    ]
    for length, kept in enumerate(drift.kept, start=1):
        rows.append(
            (f"keep the first {length} codes" if length > 1 else "keep code 1", share(kept))
        )
    rows.append(("keep code 1 after the best renaming", share(drift.kept_relabelled)))
    return FigureTable("Drift", ("figure", "value"), tuple(rows))
