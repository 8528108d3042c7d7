"""What all files of semantic IDs hold: items, their codes, and the sizes of the levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ArtifactError, DataError, ShapeError
from rqtoolkit.functional.arguments import shown
from rqtoolkit.semantic_ids.items import as_item_ids, check_distinct

__all__ = ["ItemCodes", "checked_codes", "checked_items", "existing_file"]


@dataclass(frozen=True, eq=False)
class ItemCodes:
    """Items and their codes, as a file has them.

    Attributes:
        item_ids: Shape (N,), int64 or strings.
        codes: Shape (N, length), int64, from 0 at every level.
        codebook_sizes: One number a level: as the file or the caller says, else the largest code
            and one.
        counter: The last code only tells items apart that share all others.
    """

    item_ids: NDArray
    codes: NDArray[np.int64]
    codebook_sizes: tuple[int, ...]
    counter: bool = False


def checked_items(where: str, item_ids: Any, codes: ArrayLike) -> tuple[NDArray, NDArray[np.int64]]:
    """Return ids (N,) and codes (N, length) that fit each other.

    Raises:
        ShapeError: If they do not, or there is no item.
        DataError: If codes are no integers from 0, or ids not distinct integers or strings.
    """
    ids, table = as_item_ids(where, item_ids), np.asarray(codes)
    if not len(ids) and not len(table):
        raise ShapeError(f"{where}: there is no item to write. Add some first.")
    if table.ndim != 2 or 0 in table.shape or len(ids) != len(table):
        raise ShapeError(
            f"{where}: codes has to have shape (N, length) with one item id a row; got codes of "
            f"shape {table.shape} and {len(ids)} ids. Codes of one level a row have to be "
            "transposed."
        )
    check_distinct(where, ids)
    checked_codes(where, table, None)
    return ids, table.astype(np.int64)


def checked_codes(
    where: str, codes: NDArray, codebook_sizes: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the codebook sizes of codes (N, length): those given, or the largest code and one.

    Raises:
        ShapeError: If there is not one size a level.
        DataError: If a code is no integer, negative or not below its size; where an offset of the
            levels before explains it, the message says so.
    """
    if codes.dtype.kind not in "iu" or codes.min() < 0:
        raise DataError(
            f"{where}: codes have to be integers from 0; got dtype {codes.dtype} and the least "
            f"code {codes.min()}."
        )
    largest = codes.max(axis=0)
    if codebook_sizes is None:
        return tuple(int(code) + 1 for code in largest)
    sizes = np.asarray(codebook_sizes)
    if sizes.shape != largest.shape:
        raise ShapeError(
            f"{where}: codebook_sizes={shown(tuple(codebook_sizes))} has to hold one size a level; "
            f"got codes of {codes.shape[1]} levels."
        )
    if (largest >= sizes).any():
        level = int(np.argmax(largest >= sizes))
        offsets = np.cumsum(sizes) - sizes
        shifted = codes - offsets
        hint = (
            f" They are offset by {tuple(offsets.tolist())}: subtract that."
            if ((shifted >= 0) & (shifted < sizes)).all()
            else ""
        )
        raise DataError(
            f"{where}: codes of level {level} have to be below {sizes[level]}; got "
            f"{largest[level]}.{hint}"
        )
    return tuple(int(size) for size in sizes)


def existing_file(path: str | Path) -> Path:
    """Return the path of a file that is there.

    Raises:
        ArtifactError: If it is not.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} is not there, or is no file. Name another.")
    return path
