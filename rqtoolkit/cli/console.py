"""What the terminal shows: results on stdout, progress and messages on stderr."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from rqtoolkit.functional.progress import Progress

__all__ = [
    "json_text",
    "message",
    "print_figures",
    "print_json",
    "print_table",
    "print_wide",
    "progress_bar",
]

_WIDEST = 10_000  # columns, far beyond any table here
_SECONDS_BETWEEN_LINES = 10.0

_errors = Console(stderr=True, highlight=False)


def message(text: str) -> None:
    """Print a line on stderr, above the progress bar where one is running."""
    _errors.print(text, markup=False, soft_wrap=True)


def json_text(value: Any) -> str:
    """Return a value as JSON; infinite and undefined numbers become null."""
    return json.dumps(_finite(value), indent=2)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout; infinite and undefined numbers become null."""
    print(json_text(value))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as aligned columns on stdout; floats with five significant digits."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{cell:.5g}" if isinstance(cell, float) else str(cell) for cell in row))
    print_wide(table)


def print_figures(
    figures: Mapping[str, object],
    *,
    as_json: bool,
    more: Mapping[str, object] | None = None,
    wrote: Path | None = None,
) -> None:
    """Print the figures of one piece of work: JSON and nothing else, or a table of one row.

    Args:
        figures: By name.
        as_json: Whether JSON was asked for.
        more: What JSON has beside or in place of them, such as lists.
        wrote: What a message is to name as written.
    """
    if as_json:
        print_json({**figures, **(more or {})})
        return
    print_table(list(figures), [list(figures.values())])
    if wrote is not None:
        message(f"Wrote {wrote}")


def print_wide(tables: RenderableType) -> None:
    """Print tables on stdout; those wider than the terminal wrap there, and no figure is cut."""
    console = Console(highlight=False)
    unbounded = console.options.update(width=_WIDEST)
    width = max(console.width, console.measure(tables, options=unbounded).maximum)
    Console(highlight=False, width=width).print(tables, crop=False)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a callback `progress(description, done, total)` that draws on stderr.

    On a terminal it is a bar for what runs now, cleared at the end. Elsewhere, as in a log file, a
    line at most every ten seconds tells that the job lives, so short jobs are silent.
    """
    if not _errors.is_terminal:
        yield _sparse_lines()
        return
    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_errors,
        transient=True,
    )
    shown: dict[str, Any] = {}

    def draw(description: str, done: int, total: int) -> None:
        work = description.partition(",")[0]  # what follows may change, as a loss does
        if work not in shown:
            for task in shown.values():
                bars.remove_task(task)
            shown.clear()
            shown[work] = bars.add_task(description, total=total, completed=done)
        bars.update(shown[work], description=description, completed=done, total=total)

    with bars:
        yield draw


def _sparse_lines() -> Progress:
    last = time.monotonic()

    def write(description: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            print(f"{description}: {done}/{total}", file=sys.stderr, flush=True)

    return write


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
