"""Item ids, integers or strings, and finding rows by them or by codes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.arguments import shown

__all__ = [
    "RowIndex",
    "as_item_ids",
    "check_codes",
    "check_distinct",
    "check_kind",
    "id_ranks",
]

_LARGEST = np.iinfo(np.int64).max
_SURROGATES = 0xD800, 0xDFFF  # half characters, which no file in UTF-8 can hold


def as_item_ids(where: str, item_ids: Any) -> NDArray:
    """Return item ids as one array of int64 or of strings, in the order given.

    Args:
        where: Method, for messages.
        item_ids: Integers or strings: array, list, pandas Series or Index, pyarrow column, tensor.

    Returns:
        Shape (N,), int64, or numpy strings no wider than the longest.

    Raises:
        ShapeError: If there is more than one axis.
        DataError: If an id is missing, or they are not all integers or all strings.
    """
    ids = _plain_array(where, item_ids)
    if ids.ndim != 1:
        raise ShapeError(f"{where}: item_ids has to have shape (N,); got {ids.shape}.")
    if ids.dtype.kind == "O":
        ids = _from_objects(where, ids)
    if ids.dtype.kind in "iu":
        if ids.dtype.kind == "u" and ids.max(initial=0) > _LARGEST:
            raise DataError(f"{where}: item_ids have to fit int64; got {ids.max()}. Pass strings.")
        return ids.astype(np.int64)
    if ids.dtype.kind != "U":
        raise DataError(
            f"{where}: item_ids have to be integers or strings; got dtype {ids.dtype}. "
            "Pass item_ids.astype('int64') or .astype(str)."
        )
    width = int(np.strings.str_len(ids).max(initial=1))
    ids = np.ascontiguousarray(ids, dtype=f"=U{max(width, 1)}")
    points = ids.view(np.uint32)
    if ((points >= _SURROGATES[0]) & (points <= _SURROGATES[1])).any():
        raise DataError(f"{where}: item_ids hold half a character (surrogate). Repair the strings.")
    return ids


def check_distinct(where: str, item_ids: NDArray) -> None:
    """Refuse ids of which some item has another's.

    Raises:
        DataError: If there are any.
    """
    unique, counts = np.unique(item_ids, return_counts=True)
    if len(unique) < len(item_ids):
        raise DataError(
            f"{where}: item_ids have to be distinct; got {shown(unique[np.argmax(counts)])} "
            f"{counts.max()} times, {len(item_ids) - len(unique)} rows too many in all. "
            "Keep one row an item."
        )


def check_kind(where: str, item_ids: NDArray, published: NDArray) -> None:
    """Refuse integers where the items have strings, and the other way round.

    Raises:
        DataError: If the kinds differ.
    """
    kinds = {"i": "integers", "U": "strings"}
    if len(item_ids) and item_ids.dtype.kind != published.dtype.kind:
        raise DataError(
            f"{where}: item_ids have to be {kinds[published.dtype.kind]} as those of the items; "
            f"got {kinds[item_ids.dtype.kind]}, such as {shown(item_ids[0])}. Convert them."
        )


def id_ranks(item_ids: NDArray) -> NDArray[np.int64]:
    """Return each id's place among the sorted ids, which no order of rows changes."""
    ranks = np.empty(len(item_ids), np.int64)
    ranks[np.argsort(item_ids, kind="stable")] = np.arange(len(item_ids))
    return ranks


def check_codes(
    where: str, codes: Any, codebook_sizes: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Return codes (N, length) as int64.

    Raises:
        ShapeError: If there are not two axes, or codebook_sizes are not one a column.
        DataError: If the codes are no integers, below 0, or not below codebook_sizes.
    """
    table = np.asarray(codes)
    if table.ndim != 2 or 0 in table.shape:
        raise ShapeError(
            f"{where}: codes has to have shape (N, length) with neither 0; got {table.shape}."
        )
    if table.dtype.kind not in "iu":
        raise DataError(f"{where}: codes have to be integers; got dtype {table.dtype}.")
    if codebook_sizes is not None and len(codebook_sizes) != table.shape[1]:
        raise ShapeError(
            f"{where}: codebook_sizes={shown(tuple(codebook_sizes))} has to have one number for "
            f"each of {table.shape[1]} codes. Pass codes as (N, length): perhaps they are "
            "transposed."
        )
    wrong = table < 0
    if codebook_sizes is not None:
        wrong |= table >= np.asarray(codebook_sizes)
    if wrong.any():
        row, level = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        limit = "" if codebook_sizes is None else f" and below {codebook_sizes[int(level)]}"
        raise DataError(
            f"{where}: codes of level {level} have to be from 0{limit}; got {table[row, level]} "
            f"in row {row}. Take off the offsets of levels, if there are any."
        )
    return table.astype(np.int64)


class RowIndex:
    """Find the rows of keys by binary search.

    Args:
        keys: Shape (N,), anything numpy sorts; may repeat.
    """

    def __init__(self, keys: NDArray) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def find(self, keys: NDArray) -> NDArray[np.int64]:
        """Return the first row of each key, −1 where there is none."""
        if not len(self._sorted):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[places] == keys, self._order[places], -1)

    def find_all(self, keys: NDArray) -> list[NDArray[np.int64]]:
        """Return all rows of each key, ascending."""
        first = np.searchsorted(self._sorted, keys, "left")
        last = np.searchsorted(self._sorted, keys, "right")
        return [self._order[a:b] for a, b in zip(first, last, strict=True)]


def _plain_array(where: str, item_ids: Any) -> NDArray:
    """Return an array whose elements numpy has not converted into each other."""
    if isinstance(item_ids, str | bytes):
        raise DataError(f"{where}: item_ids has to be a list of ids; got {shown(item_ids)} alone.")
    if getattr(item_ids, "null_count", 0):
        raise DataError(f"{where}: item_ids hold {item_ids.null_count} nulls. Drop these rows.")
    if hasattr(item_ids, "buffers"):  # a pyarrow array, which copies strings only when told
        return np.asarray(item_ids.to_numpy(zero_copy_only=False))
    if hasattr(item_ids, "to_numpy"):
        return np.asarray(item_ids.to_numpy())
    if hasattr(item_ids, "__array__"):
        return np.asarray(item_ids)
    listed = list(item_ids)
    objects = np.empty(len(listed), object)
    objects[:] = listed
    return objects


def _from_objects(where: str, ids: NDArray) -> NDArray:
    values = ids.tolist()
    kinds = set(map(type, values))
    if all(issubclass(kind, str) for kind in kinds):
        if any(value.endswith("\0") for value in values):
            raise DataError(f"{where}: item_ids end in a zero character. Strip it.")
        return np.array(values, dtype=str) if values else np.array([], np.int64)
    if all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError as error:
            raise DataError(f"{where}: item_ids have to fit int64. Pass strings.") from error
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise DataError(
        f"{where}: item_ids have to be all integers or all strings; got {names}. "
        "Convert them, and drop rows without an id."
    )
