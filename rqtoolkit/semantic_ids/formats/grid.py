"""The tensor of GRID: a level a row and an item a column."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ArtifactError, DataError, ShapeError
from rqtoolkit.functional.arguments import shown
from rqtoolkit.io.atomic import atomic_path
from rqtoolkit.io.parquet import unreadable
from rqtoolkit.semantic_ids.figures import prefix_groups
from rqtoolkit.semantic_ids.formats.item_codes import (
    ItemCodes,
    checked_codes,
    checked_items,
    existing_file,
)

__all__ = ["read_grid", "write_grid"]


def read_grid(
    path: str | Path, *, counter: bool = True, codebook_sizes: Sequence[int] | None = None
) -> ItemCodes:
    """Read GRID's `.pt`: a tensor (length, N), item i in column i, unpickled as weights only.

    GRID appends a digit to IDs that items share. Its first releases counted 1, 2, … for these items
    and gave 0 to all others; later ones count 0, 1, … Either is kept as it is.

    Args:
        path: The file, usually `merged_predictions_tensor.pt`.
        counter: The last row is that digit. False where all rows are codes.
        codebook_sizes: One number a level, the digit's included; the file does not say.

    Raises:
        ArtifactError: If the file is missing, unreadable, holds more than a tensor, or would run
            code.
        ShapeError: If the tensor is not (length, N).
        DataError: If values are no whole numbers or out of range, or the last row counts nothing.

    References:
        `deduplicate_rows_in_tensor` and `transpose_tensor_from_file` in `src/utils/
        tensor_utils.py` of snap-research/GRID (Ju et al. 2025).
    """
    path = existing_file(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise unreadable(path, error) from error
    if not isinstance(found, torch.Tensor):
        raise ArtifactError(
            f"{path} has to hold one tensor (length, N); got {type(found).__name__}. "
            "Save the tensor of codes alone."
        )
    levels = "length" if codebook_sizes is None else str(len(codebook_sizes))
    if found.ndim != 2 or 0 in found.shape:
        raise ShapeError(f"{path} has to hold a tensor ({levels}, N); got {tuple(found.shape)}.")
    turned = (
        found.shape[0] > found.shape[1]
        if codebook_sizes is None
        else found.shape[0] != len(codebook_sizes) == found.shape[1]
    )
    if turned:
        raise ShapeError(
            f"{path} has to hold a tensor ({levels}, N), an item a column; got "
            f"{tuple(found.shape)}, which looks like an item a row. Transpose it; for fewer items "
            "than levels pass codebook_sizes."
        )
    values = found.numpy() if found.dtype != torch.bfloat16 else found.float().numpy()
    codes = values.T.astype(np.int64)
    if (codes != values.T).any():
        raise DataError(f"{path}: codes have to be whole numbers; got {values.dtype} fractions.")
    sizes = checked_codes(str(path), codes, codebook_sizes)
    if counter:
        _check_counter(path, codes)
    return ItemCodes(np.arange(len(codes)), codes, sizes, counter)


def write_grid(path: str | Path, codes: ArrayLike, item_ids: Any = None) -> None:
    """Write codes as GRID reads them: a tensor (length, N) of int64, item i in column i.

    Args:
        path: File to write.
        codes: Shape (N, length), the counter included where there is one.
        item_ids: 0 … N − 1 in any order; None takes the rows as they come.

    Raises:
        ArtifactError: If the folder is missing.
        ShapeError: If ids and codes do not fit.
        DataError: If the ids are not 0 … N − 1, which are the only ones GRID knows.
    """
    ids = np.arange(len(np.asarray(codes))) if item_ids is None else item_ids
    ids, codes = checked_items("write_grid", ids, codes)
    if ids.dtype.kind != "i" or ids.min() != 0 or ids.max() != len(ids) - 1:
        strange = ids if ids.dtype.kind != "i" else ids[(ids < 0) | (ids >= len(ids))]
        raise DataError(
            f"write_grid: item_ids have to be 0 … {len(ids) - 1}, since GRID numbers items by "
            f"column; got {shown(strange[0])}. Write the rows in order, without item_ids, "
            "and keep these in a file of their own (--ids-out)."
        )
    columns = np.empty_like(codes)
    columns[ids] = codes
    with atomic_path(path) as temporary:
        torch.save(torch.from_numpy(np.ascontiguousarray(columns.T)), temporary)


def _check_counter(path: Path, codes: NDArray[np.int64]) -> None:
    """Refuse a last code that does not count the items of an ID from 0, or from 1 if several."""
    counters = codes[:, -1]
    group = (
        prefix_groups(codes[:, :-1])[-1] if codes.shape[1] > 1 else np.zeros(len(codes), np.int64)
    )
    order = np.lexsort((counters, group))
    sizes = np.bincount(group)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    shared = np.repeat(sizes > 1, sizes)
    if not any((counters[order] == place + start * shared).all() for start in (0, 1)):
        raise DataError(
            f"{path}: the last row has to count the items that share all other codes, 0, 1, … or "
            "1, 2, … with 0 for items alone; it does not. Read codes without counter."
        )
