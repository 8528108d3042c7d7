"""The table `item_to_sid` of TorchEasyRec: codes, the same in one vocabulary, and slots of IDs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ArtifactError, DataError, ShapeError
from rqtoolkit.functional.arguments import shown
from rqtoolkit.io.atomic import atomic_path
from rqtoolkit.io.parquet import unreadable
from rqtoolkit.semantic_ids.figures import prefix_groups
from rqtoolkit.semantic_ids.formats.item_codes import ItemCodes, checked_codes, checked_items
from rqtoolkit.semantic_ids.items import as_item_ids, check_distinct

__all__ = ["read_item_to_sid", "write_item_to_sid"]


def read_item_to_sid(
    path: str | Path, *, counter: bool = False, codebook_sizes: Sequence[int] | None = None
) -> ItemCodes:
    """Read TorchEasyRec's table of items, Parquet with `item_id`, `codebook`, `offset_codebook`.

    The offsets between the two columns give the sizes of all levels but the last, which comes from
    `manifest.json` one folder up, where there is one. `origin_codebook`, what the model predicted
    before collisions were resolved, is not read.

    Args:
        path: A Parquet file, or the folder `item_to_sid` with its `part-*.parquet`.
        counter: Append the slot of an item in its ID, column `index`, as a code counted from 0.
            TorchEasyRec counts slots from 1.
        codebook_sizes: One number a level of `codebook`; None for what the files say.

    Raises:
        ArtifactError: If a file is missing or unreadable, or lacks a column.
        ShapeError: If IDs differ in length.
        DataError: If offsets do not fit the codes, codes are out of range, or slots do not count
            the items of an ID from 1.

    References:
        `tzrec/tools/sid/resolve_sid_collisions.py` and `tzrec/utils/sid/bundle.py` of
        alibaba/TorchEasyRec: layer i of `offset_codebook` is shifted by `sum(codebook[:i])`.
    """
    path = Path(path)
    table = _read_tables(path)
    item_ids = as_item_ids(str(path), table.column("item_id"))
    check_distinct(str(path), item_ids)
    codes = _matrix(path, table, "codebook")
    if codebook_sizes is None:
        codebook_sizes = _manifest_sizes(path)
    if "offset_codebook" in table.column_names:
        shifted = _matrix(path, table, "offset_codebook")
        sizes = _sizes_from_offsets(path, codes, shifted, codebook_sizes)
    else:
        sizes = checked_codes(str(path), codes, codebook_sizes)
    if not counter:
        return ItemCodes(item_ids, codes, sizes)
    if "index" not in table.column_names:
        raise ArtifactError(f"{path} has no column 'index' to count by. Read it without counter.")
    slots = table.column("index").to_numpy()
    if (_ranked(codes, slots) != slots).any():
        raise DataError(
            f"{path}: column 'index' has to count the items of an ID from 1; got {slots.min()} … "
            f"{slots.max()}. Read it without counter."
        )
    full = np.column_stack([codes, slots - 1])
    return ItemCodes(item_ids, full, (*sizes, int(slots.max())), counter=True)


def write_item_to_sid(
    path: str | Path,
    item_ids: Any,
    codes: ArrayLike,
    codebook_sizes: Sequence[int],
    *,
    counter: bool = False,
) -> None:
    """Write the table that TorchEasyRec trains on and appends to.

    Columns are `item_id`, `origin_codebook` and `codebook` (equal here), `offset_codebook` with
    level i shifted by the sizes before it, and `index`, the slot of an item in its ID, from 1.

    Args:
        path: Parquet file to write; TorchEasyRec looks for `item_to_sid/part-*.parquet`.
        item_ids: Shape (N,), integers or strings.
        codes: Shape (N, length).
        codebook_sizes: One number a level.
        counter: The last code is a counter from 0 and becomes `index`; otherwise slots follow the
            order of rows.

    Raises:
        ArtifactError: If the folder is missing.
        ShapeError: If shapes do not fit.
        DataError: If codes are out of range, or ids not distinct.
    """
    where = "write_item_to_sid"
    item_ids, table = checked_items(where, item_ids, codes)
    sizes = checked_codes(where, table, codebook_sizes)
    if counter and len(sizes) < 2:
        raise ShapeError(
            f"{where}: a counter alone is no ID; got one code. Write it without counter."
        )
    slots = table[:, -1] + 1 if counter else _slots(table)
    if counter:
        table, sizes = table[:, :-1], sizes[:-1]
    offsets = np.cumsum((0, *sizes[:-1]))
    columns = {
        "item_id": pa.array(item_ids.tolist(), pa.int64() if item_ids.dtype.kind == "i" else None),
        "origin_codebook": _lists(table),
        "codebook": _lists(table),
        "offset_codebook": _lists(table + offsets),
        "index": pa.array(slots, pa.int64()),
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _read_tables(path: Path) -> pa.Table:
    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise ArtifactError(f"{path} is not there, or has no part-*.parquet. Name another.")
    try:
        table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    for name in ("item_id", "codebook"):
        if name not in table.column_names:
            raise ArtifactError(
                f"{path} has to have columns item_id and codebook; got "
                f"{', '.join(table.column_names)}. Name TorchEasyRec's item_to_sid."
            )
    if table.num_rows == 0:
        raise DataError(f"{path} holds no item.")
    return table


def _matrix(path: Path, table: pa.Table, name: str) -> NDArray[np.int64]:
    column = table.column(name).combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)) or (
        not pa.types.is_integer(column.type.value_type)
    ):
        raise DataError(
            f"{path}: column {name!r} has to hold lists of integers; got {column.type}."
        )
    values, lengths = column.flatten(), column.value_lengths().to_numpy(zero_copy_only=False)
    if column.null_count or values.null_count or (lengths != lengths[0]).any() or not lengths[0]:
        raise ShapeError(f"{path}: column {name!r} has to hold lists of one length without nulls.")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), -1).astype(np.int64)


def _manifest_sizes(path: Path) -> tuple[int, ...] | None:
    folder = path if path.is_dir() else path.parent
    manifest = folder.parent / "manifest.json"
    if folder.name not in ("item_to_sid", "delta_item_to_sid") or not manifest.is_file():
        return None
    try:
        return tuple(int(size) for size in json.loads(manifest.read_text())["codebook"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(manifest, error) from error


def _sizes_from_offsets(
    path: Path, codes: NDArray, shifted: NDArray, codebook_sizes: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the sizes that the difference of both columns tells."""
    if shifted.shape != codes.shape:
        raise ShapeError(
            f"{path}: codebook and offset_codebook have to be of one length; got "
            f"{codes.shape[1]} and {shifted.shape[1]}."
        )
    offsets = shifted - codes
    if codes.shape[1] > 1 and (codes == shifted).all():
        raise DataError(
            f"{path}: codebook and offset_codebook are equal, so one of them is not what its name "
            "says. Write the table again."
        )
    steady = offsets[0]
    last = int(codes[:, -1].max()) + 1 if codebook_sizes is None else codebook_sizes[-1]
    found = (*np.diff(steady).tolist(), int(last))
    if (offsets != steady).any() or steady[0] != 0 or min(found) < 1:
        raise DataError(
            f"{path}: offset_codebook has to be codebook with the sizes of the levels before "
            "added to each; it is not. Write the table again."
        )
    if codebook_sizes is not None and found != tuple(codebook_sizes):
        raise DataError(
            f"{path}: the offsets tell codebook_sizes {found[:-1]} of all levels but the last; got "
            f"codebook_sizes={shown(tuple(codebook_sizes))}. Name the sizes that the "
            "table was written with."
        )
    return checked_codes(str(path), codes, found)


def _slots(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the items of each ID from 1, in the order of rows."""
    return _ranked(codes, np.arange(len(codes)))


def _ranked(codes: NDArray[np.int64], key: NDArray) -> NDArray[np.int64]:
    """Return the place of each item among those of its ID, from 1, ordered by a key."""
    group = prefix_groups(codes)[-1]
    order = np.lexsort((key, group))
    sizes = np.bincount(group)
    ranks = np.empty(len(codes), np.int64)
    ranks[order] = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1
    return ranks


def _lists(table: NDArray[np.int64]) -> pa.ListArray:
    ends = np.arange(0, table.size + 1, table.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(table.reshape(-1)))
