"""Images that a text file lists, with a class or a caption beside each; the lists of CC-3M."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imagegen.data.folders import Files
from imagegen.data.stored import Table
from imagegen.data.strings import Strings
from rqtoolkit.errors import ArtifactError, DataError

__all__ = ["open_cc3m", "open_list"]

PATHS = ("path", "image", "file", "file_name", "filename")
LABELS = ("label", "class")
TEXTS = ("text", "caption")


def open_list(
    path: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    text_column: str | None = None,
) -> Table:
    """Return the images a file lists: a path a line, and after a tab its class or its caption.

    Paths are from the folder of the list. A file that ends in .csv has commas and quotes as
    spreadsheets write them, any other tabs alone. A first line that holds one of the names below is
    a header and says which column is what; without it the first is the path, and the second the
    class where all are integers, else the caption.

    Args:
        path: The file.
        image_column: Header of the paths; None takes path, image, file, file_name or filename.
        label_column: Header of the classes; None takes label or class, where there is one.
        text_column: Header of the captions; None takes text or caption, where there is one.

    Raises:
        ArtifactError: If the file is missing or no text.
        DataError: If it lists nothing, a line has other columns, or a named column is missing.
    """
    rows = _read_rows(path)
    width = len(rows[0])
    uneven = next((n for n, row in enumerate(rows, start=1) if len(row) != width), None)
    if uneven is not None:
        raise DataError(
            f"data: line {uneven} of {path} must have {width} columns as the first; got "
            f"{len(rows[uneven - 1])}. Write path, tab, class or caption in each."
        )
    named = (image_column, label_column, text_column)
    if any(named) or any(cell in PATHS for cell in rows[0]):
        header, rows = rows[0], rows[1:]
        image = _find(path, header, image_column, PATHS)
        label = _find(path, header, label_column, LABELS)
        text = _find(path, header, text_column, TEXTS)
        if image is None:
            raise DataError(
                f"data: {path} has no column of paths; got {', '.join(header)}. Name one of them "
                f"in data.image_column."
            )
    elif width > 2:
        raise DataError(
            f"data: {path} has {width} columns and no header; got {rows[0]!r:.80}. Write a first "
            f"line with path, label, text."
        )
    else:
        image, label, text = 0, None, None
        if width == 2:
            is_class = all(row[1].isdecimal() for row in rows)
            label, text = (1, None) if is_class else (None, 1)
    if not rows:
        raise DataError(f"data: {path} lists no images; got a header alone. Add a line for each.")
    return Table(
        Files(str(path.absolute().parent), Strings.pack(row[image] for row in rows)),
        None if label is None else np.array([row[label] for row in rows]),
        None,
        None if text is None else Strings.pack(row[text] for row in rows),
    )


def open_cc3m(path: Path) -> tuple[Table, Table]:
    """Return the images of train_list.txt and val_list.txt with their captions.

    This is what the downloader of the paper's authors leaves: a line for each image, its path from
    the folder and its caption, with a tab between.

    Raises:
        ArtifactError: If one of the lists is missing.
        DataError: If a line is anything else.
    """
    tables = []
    for part in ("train", "val"):
        table = open_list(path / f"{part}_list.txt")
        if table.texts is None:
            raise DataError(
                f"data: {path / part}_list.txt must have a caption on each line; got paths or "
                f"numbers. Write path, tab, caption."
            )
        tables.append(table)
    return tables[0], tables[1]


def _read_rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise ArtifactError(f"data: path={path} is not a file. Check the path.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                rows = [row for row in csv.reader(file) if row]
            else:
                rows = list(_split_tabs(file))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise ArtifactError(
            f"data: {path} is not a list in UTF-8; got {type(error).__name__}: {error}. Write a "
            f"path on each line."
        ) from None
    if not rows:
        raise DataError(f"data: {path} lists no images; got an empty file. Add a line for each.")
    return rows


def _split_tabs(lines: Iterator[str]) -> Iterator[list[str]]:
    for line in lines:
        bare = line.rstrip("\r\n")
        if bare.strip():
            yield bare.split("\t")


def _find(path: Path, header: list[str], name: str | None, usual: tuple[str, ...]) -> int | None:
    """Return the place of a column: the one named, or the first of the usual ones."""
    if name is not None and name not in header:
        raise DataError(
            f"data: {path} has no column {name!r}; got {', '.join(header)}. Name one of these."
        )
    wanted = usual if name is None else (name,)
    return next((header.index(cell) for cell in wanted if cell in header), None)
