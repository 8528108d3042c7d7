"""Item ids as words and in files, and tables of items and codes."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rqtoolkit.errors import ArtifactError, ConfigError, DataError
from rqtoolkit.io.atomic import atomic_path
from rqtoolkit.io.parquet import unreadable
from rqtoolkit.semantic_ids.formats import ItemCodes
from rqtoolkit.semantic_ids.formats.item_codes import checked_codes
from rqtoolkit.semantic_ids.items import as_item_ids
from rqtoolkit.semantic_ids.tokens import format_tokens, level_tokens, parse_tokens

__all__ = [
    "check_there",
    "ids_of_words",
    "read_column",
    "read_csv",
    "read_ids",
    "read_parquet",
    "read_text",
    "read_tokens",
    "write_csv",
    "write_ids",
    "write_lists",
    "write_parquet",
    "write_tokens",
]

_ID = "item_id"
_MOST_LEVELS = 64


def ids_of_words(words: Sequence[str], like: NDArray | None = None) -> NDArray:
    """Return words as item ids, integers where all are written as such: "007" stays a word.

    Args:
        words: Of the command line or a text file.
        like: Ids of a catalogue, whose kind they have to be.

    Raises:
        DataError: If the catalogue has integers and a word is none.
    """
    wanted = None if like is None or not len(like) else like.dtype.kind
    whole = wanted != "U" and all(_is_whole(word) for word in words)
    if wanted == "i" and not whole:
        word = next(word for word in words if not _is_whole(word))
        raise DataError(f"item ids of the catalogue are integers; got {word!r}. Check the ids.")
    return as_item_ids("item ids", [int(word) for word in words] if whole else list(words))


def check_there(path: Path) -> None:
    """Refuse a path at which there is nothing to read.

    Raises:
        ArtifactError: If nothing is there, or a folder.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist. Check the path.")
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder. Name a file in it.")


def read_text(path: Path) -> list[str]:
    """Return the lines of a text file that hold something, without white space around them."""
    check_there(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text; got {error}. Convert it.") from error
    return [line.strip() for line in lines if line.strip()]


def read_ids(path: Path, like: NDArray | None = None) -> NDArray:
    """Read item ids from an .npy, a .parquet (column item_id, or the only one), or text.

    Args:
        path: Text files have an id a line.
        like: As in `ids_of_words`, for text.

    Raises:
        ArtifactError: If the file is unreadable.
        ConfigError: If it is not clear which column is meant.
        DataError: If the ids are neither integers nor strings.
    """
    if path.suffix.lower() == ".npy":
        check_there(path)
        try:
            return as_item_ids(str(path), np.load(path, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise unreadable(path, error) from error
    if path.suffix.lower() == ".parquet":
        return as_item_ids(str(path), read_column(path))
    return ids_of_words(read_text(path), like)


def read_column(path: Path, name: str | None = None) -> pa.ChunkedArray:
    """Return a column of a Parquet file: by default item_id, or the only one.

    Raises:
        ArtifactError: If the file is unreadable.
        ConfigError: If there is no such column.
    """
    check_there(path)
    try:
        names = pq.read_schema(path).names
        if name is None and len(names) == 1:
            name = names[0]
        if (name or _ID) not in names:
            raise ConfigError(f"{path} has no column {name or _ID!r}; got {', '.join(names)}.")
        return pq.read_table(path, columns=[name or _ID]).column(0)
    except pa.ArrowException as error:
        raise unreadable(path, error) from error


def write_ids(path: Path, item_ids: NDArray) -> None:
    """Write item ids, one a line."""
    with atomic_path(path) as temporary:
        text = "".join(f"{item}\n" for item in item_ids.tolist())
        temporary.write_text(text, encoding="utf-8")


def write_parquet(
    path: Path, item_ids: NDArray, codes: NDArray[np.int64], **others: NDArray
) -> None:
    """Write columns item_id, code_0, code_1, … and any others."""
    columns = {_ID: pa.array(item_ids.tolist(), pa.int64() if item_ids.dtype.kind == "i" else None)}
    columns |= {f"code_{level}": pa.array(column) for level, column in enumerate(codes.T)}
    columns |= {name: pa.array(values) for name, values in others.items()}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def read_parquet(path: Path, codebook_sizes: Sequence[int] | None = None) -> ItemCodes:
    """Read columns item_id, code_0, code_1, …, as `write_parquet` and `SemanticIDs.save` do.

    Raises:
        ArtifactError: If the file is unreadable.
        ConfigError: If it has no such columns.
        DataError: If codes are no integers, or not below codebook_sizes.
    """
    item_ids = as_item_ids(str(path), read_column(path, _ID))
    names = set(pq.read_schema(path).names)
    levels = _levels(path, names)
    columns = [read_column(path, name).to_numpy() for name in levels]
    return _item_codes(path, item_ids, np.column_stack(columns), codebook_sizes)


def write_csv(path: Path, item_ids: NDArray, codes: NDArray[np.int64]) -> None:
    """Write a head item_id,code_0,code_1,… and a line an item."""
    head = [_ID, *(f"code_{level}" for level in range(codes.shape[1]))]
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(head)
        rows = zip(item_ids.tolist(), codes.tolist(), strict=True)
        writer.writerows([item, *row] for item, row in rows)


def read_csv(path: Path, codebook_sizes: Sequence[int] | None = None) -> ItemCodes:
    """Read what `write_csv` wrote; ids are integers where all are written as such.

    Raises:
        ArtifactError: If the file is unreadable, or lines differ in length.
        ConfigError: If the head has no such columns.
        DataError: If codes are no integers, or not below codebook_sizes.
    """
    check_there(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head, *lines = [line for line in csv.reader(file) if line] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from error
    places = [head.index(name) for name in _levels(path, set(head))]
    if odd := [line for line in lines if len(line) != len(head)]:
        raise ArtifactError(f"{path} has to have {len(head)} fields a line; got {odd[0]}.")
    if _ID not in head or not lines:
        raise ConfigError(f"{path} has to have a column {_ID} and items; got {', '.join(head)}.")
    item_ids = ids_of_words([line[head.index(_ID)] for line in lines])
    try:
        codes = np.array([[int(line[place]) for place in places] for line in lines])
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: codes have to be integers; got {error}.") from error
    return _item_codes(path, item_ids, codes, codebook_sizes)


def write_tokens(path: Path, item_ids: NDArray, codes: NDArray[np.int64], style: str) -> None:
    """Write a line an item: id, tab, tokens."""
    texts = format_tokens(codes, style)
    items = item_ids.tolist()
    if broken := [item for item in items if set("\t\r\n") & set(str(item))]:
        raise DataError(f"{path}: ids must not hold tabs or line ends; got {broken[0]!r}.")
    with atomic_path(path) as temporary:
        lines = (f"{item}\t{text}\n" for item, text in zip(items, texts, strict=True))
        temporary.write_text("".join(lines), encoding="utf-8")


def read_tokens(path: Path, style: str, codebook_sizes: Sequence[int] | None = None) -> ItemCodes:
    """Read what `write_tokens` wrote; ids are integers where all are written as such.

    Raises:
        ArtifactError: If the file is unreadable, or a line is no id, tab and text.
        ConfigError: If style is none.
        DataError: If a text is no semantic ID, or codes are not below codebook_sizes.
    """
    level_tokens([1], style)
    pairs = [line.partition("\t") for line in read_text(path)]
    if not pairs or not all(tab for _, tab, _ in pairs):
        raise ArtifactError(f"{path} has to hold lines of an id, a tab and tokens.")
    texts = [text for _, _, text in pairs]
    lengths = range(1, _MOST_LEVELS + 1)
    fitting = (n for n in lengths if parse_tokens(texts[:1], n, style, errors="null")[0, 0] >= 0)
    codes = parse_tokens(texts, next(fitting, 1), style)
    return _item_codes(path, ids_of_words([word for word, _, _ in pairs]), codes, codebook_sizes)


def write_lists(path: Path, user_ids: NDArray, item_ids: NDArray, lists: NDArray[np.int64]) -> None:
    """Write recommendations: Parquet of user, rank and item, or text lines `user item item …`.

    Args:
        path: Ends in .parquet, or else text.
        user_ids: Shape (users,).
        item_ids: The catalogue, shape (N,).
        lists: Rows of item_ids, best first, shape (users, k); -1 where there are no more.
    """
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".parquet":
            users, places = np.nonzero(lists >= 0)
            columns = {
                "user": pa.array(user_ids[users].tolist()),
                "rank": pa.array(places + 1),
                "item": pa.array(item_ids[lists[users, places]].tolist()),
            }
            pq.write_table(pa.table(columns), temporary)
            return
        with temporary.open("w", encoding="utf-8") as file:
            for user, row in zip(user_ids.tolist(), lists, strict=True):
                items = item_ids[row[row >= 0]].tolist()
                file.write(" ".join(map(str, [user, *items])) + "\n")


def _is_whole(word: str) -> bool:
    digits = word.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) < 19 and str(int(word)) == word


def _levels(path: Path, names: set[str]) -> list[str]:
    """Return code_0, code_1, … as far as they go."""
    levels = [f"code_{level}" for level in range(len(names))]
    found = [name for name in levels if name in names]
    if not found or found != levels[: len(found)]:
        raise ConfigError(
            f"{path} has to have columns {_ID}, code_0, code_1, …; got {', '.join(sorted(names))}."
        )
    return found


def _item_codes(
    path: Path, item_ids: NDArray, codes: NDArray[Any], codebook_sizes: Sequence[int] | None
) -> ItemCodes:
    sizes = checked_codes(str(path), codes, codebook_sizes)
    return ItemCodes(item_ids, codes.astype(np.int64), sizes)
