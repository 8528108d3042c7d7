"""Results of a benchmark: one JSON file, a list of records, each of which says where it is from."""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rqtoolkit.io.atomic import atomic_path

__all__ = [
    "ROOT",
    "Record",
    "commit",
    "find",
    "merge",
    "processor",
    "read_records",
    "rounded",
    "write_records",
]

ROOT = Path(__file__).resolve().parents[1]

Record = dict[str, Any]
"""What was measured under `measures`; beside it what it was measured of, and at which `commit`."""


def merge(old: Iterable[Record], new: Iterable[Record], by: Sequence[str]) -> list[Record]:
    """Return both, sorted by the values of these names; where both hold the same, the new one."""
    merged = {tuple(record[name] for name in by): record for record in (*old, *new)}
    return [merged[key] for key in sorted(merged)]


def find(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """Return the records with these values of these names."""
    return [r for r in records if all(r[name] == value for name, value in wanted.items())]


def read_records(path: Path) -> list[Record]:
    """Return the records of a file, none if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(list(records), indent=1) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Round every number to six digits: more is noise, and makes the file longer."""
    if isinstance(value, Mapping):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def commit() -> str:
    """Return the commit of the packages measured, with a + where they were changed since."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    status = [*git, "status", "--porcelain", "--", "rqtoolkit", "apps"]
    changed = subprocess.run(status, capture_output=True, text=True).stdout.strip()
    return (head.stdout.strip() or "unknown") + ("+" if changed else "")


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else "unknown"
