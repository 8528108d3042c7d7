"""The results as one JSON file: a list of records, one a task, data set and seed."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rqtoolkit.io.atomic import atomic_path

__all__ = ["Record", "find", "merge", "read_results", "write_results"]

Record = dict[str, Any]
"""`data`, `seed`, `task`, the `commit` it was measured at, `cpu_seconds`, `measures`."""


def _key(record: Record) -> tuple[str, int, str]:
    return record["data"], record["seed"], record["task"]


def merge(old: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """Return both, sorted; where both hold the same task, data set and seed, the new one."""
    merged = {_key(record): record for record in (*old, *new)}
    return [merged[key] for key in sorted(merged)]


def find(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """Return the records with these values of `data`, `seed` or `task`."""
    return [r for r in records if all(r[name] == value for name, value in wanted.items())]


def read_results(path: Path) -> list[Record]:
    """Return the records of a file, none if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_results(path: Path, records: Iterable[Record]) -> None:
    """Write records in the order of `merge`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(merge((), records), indent=1) + "\n", encoding="utf-8")
