"""What commands do around the work: open inputs, check outputs, show progress and warnings."""

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.cli.console import message, progress_bar
from rqtoolkit.cli.semantic_ids.items import ids_of_words, read_ids
from rqtoolkit.errors import ArtifactError, ConfigError, DataError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.io.vectors import open_vectors

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids import SemanticIDs
    from rqtoolkit.semantic_ids.recommend import Sequences

__all__ = [
    "check_new_folder",
    "embeddings",
    "named_items",
    "parse_settings",
    "read_sequences",
    "rows_ids",
    "version_figures",
    "working",
]


@contextmanager
def working(threads: int | None) -> Iterator[Progress]:
    """Yield what shows progress; meanwhile warnings are lines on stderr."""
    with limited_threads(threads), progress_bar() as progress, warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda text, *_: message(f"Warning: {text}")
        yield progress


def embeddings(data: Path, key: str | None) -> Any:
    """Return what `SemanticIDs` takes as embeddings: a path, or an array of an .npz by name."""
    return data if key is None else open_vectors(data, key=key).sample(sys.maxsize)


def rows_ids(ids: Path | None, id_column: str | None, like: NDArray | None = None) -> Any:
    """Return the ids of --ids, None without.

    Raises:
        ConfigError: If --id-column names others.
    """
    if ids is not None and id_column is not None:
        raise ConfigError(f"--ids={ids} and --id-column={id_column} both name ids. Give one.")
    return None if ids is None else read_ids(ids, like)


def named_items(words: Sequence[str] | None, file: Path | None, ids: "SemanticIDs") -> NDArray:
    """Return the ids that words and a file name, of the kind a catalogue has.

    Raises:
        ConfigError: If there are none.
    """
    parts = [ids_of_words(words, ids.item_ids)] if words else []
    parts += [read_ids(file, ids.item_ids)] if file else []
    if not sum(map(len, parts)):
        raise ConfigError("there are no item ids. Name some, or a --file of them.")
    return np.concatenate(parts)


def check_new_folder(out: Path) -> Path:
    """Check before the work that `out` is a folder to be made, or an empty one.

    Raises:
        ArtifactError: If it is not: published IDs are not to be written over by accident.
    """
    if not out.parent.is_dir():
        raise ArtifactError(f"--out={out} cannot be written; got no folder {out.parent}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtifactError(f"--out={out} exists already. Choose another, or remove it first.")
    return out


def parse_settings(given: Sequence[str] | None) -> dict[str, Any]:
    """Read words NAME=VALUE, each value JSON or else a string.

    Raises:
        ConfigError: If a word has no name or value.
    """
    settings: dict[str, Any] = {}
    for word in given or ():
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"--set={word} has to be NAME=VALUE, as in rounds=8.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def version_figures(ids: "SemanticIDs") -> dict[str, Any]:
    """Return the figures that every command tells of what it wrote."""
    return {"items": len(ids), "number": ids.number, "version": ids.version}


def read_sequences(
    path: Path,
    item_ids: NDArray,
    columns: tuple[str | None, str | None, str | None],
    *,
    skip_unknown: bool = False,
) -> "Sequences":
    """Read interactions with the items of a catalogue.

    Args:
        path: Text or Parquet, as for `Sequences.read`.
        item_ids: The catalogue, shape (N,).
        columns: Names of users, items and times where given; the last may be empty.
        skip_unknown: Leave out interactions with other items.

    Raises:
        ConfigError: If columns of a text file are named.
        DataError: If there are any, and they are not to be left out.
    """
    from rqtoolkit.semantic_ids.items import RowIndex, check_kind
    from rqtoolkit.semantic_ids.recommend import Sequences

    named = dict(zip(("user_column", "item_column", "time_column"), columns, strict=True))
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    is_text = path.suffix.lower() != ".parquet"
    if given and is_text:
        option, value = next(iter(given.items()))
        option = option.replace("_", "-")
        raise ConfigError(f"--{option}={value} is for Parquet; got {path}. Leave it out.")
    if given.get("time_column") == "":
        given["time_column"] = None
    read = Sequences.read(path, **given)
    found = read.item_ids
    if is_text and item_ids.dtype.kind == "U":
        found = found.astype(str)  # numbers of a text file may be words of the catalogue
    check_kind(str(path), found, item_ids)
    rows = RowIndex(item_ids).find(found)[read.items]
    known = rows >= 0
    if not known.all() and not skip_unknown:
        unknown = found[read.items[~known]]
        raise DataError(
            f"{path}: {len(np.unique(unknown))} items have no semantic ID, such as "
            f"{unknown[0].item()!r}. Add them, or pass --skip-unknown."
        )
    if not known.all():
        message(f"Left out {(~known).sum()} of {len(known)} interactions: no semantic ID")
    kept = np.concatenate([[0], np.cumsum(known)])
    return Sequences(rows[known], kept[read.offsets], item_ids, read.user_ids)
