"""The codes and rows that functions of semantic IDs accept, with the errors for the rest."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.arguments import shown

__all__ = ["check_codes", "check_rows", "check_table"]


def check_table(where: str, codes: ArrayLike, length: int | None = None) -> NDArray[np.integer]:
    """Return an array of integers (N, length), one row a semantic ID; length None: any."""
    codes = codes.detach().cpu().numpy() if isinstance(codes, Tensor) else np.asarray(codes)
    if codes.ndim != 2 or (length is not None and codes.shape[1] != length):
        turned = codes.ndim == 2 and codes.shape[0] == length
        raise ShapeError(
            f"{where}: codes have to have shape (N, {length or 'length'}), one row a semantic ID; "
            f"got {codes.shape}." + (" They seem to be transposed: pass codes.T." if turned else "")
        )
    if codes.dtype.kind not in "iu":
        if codes.size:
            raise DataError(f"{where}: codes have to be integers; got dtype {codes.dtype}.")
        codes = codes.astype(np.int64)  # an empty list has no integers to tell by
    return codes


def check_codes(where: str, codes: ArrayLike, sizes: Sequence[int]) -> NDArray[np.integer]:
    """Return codes (N, length) of these codebook sizes as an array of integers."""
    codes = check_table(where, codes, len(sizes))
    if codes.size and (codes.min() < 0 or (codes.max(axis=0) >= np.asarray(sizes)).any()):
        raise DataError(
            f"{where}: codes have to be in [0, codebook_size) of {shown(tuple(sizes))}; got "
            f"{codes.min(axis=0).tolist()} to {codes.max(axis=0).tolist()}. Take the offsets of a "
            "flat vocabulary away with rqtoolkit.semantic_ids.tokens.unflatten_codes."
        )
    return codes


def check_rows(rows: ArrayLike, num_rows: int) -> NDArray[np.bool_]:
    """Return which rows to keep, shape (num_rows,)."""
    rows = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
    if rows.dtype == bool and rows.shape == (num_rows,):
        return rows
    if rows.dtype.kind not in "iu" and rows.size:
        raise DataError(
            f"PrefixTable.subset: rows have to be row numbers, or bool of shape ({num_rows},); "
            f"got {rows.dtype} of shape {rows.shape}."
        )
    if rows.size and (rows.min() < 0 or rows.max() >= num_rows):
        raise DataError(
            f"PrefixTable.subset: rows have to be in [0, {num_rows}); "
            f"got {rows.min()} to {rows.max()}."
        )
    kept = np.zeros(num_rows, bool)
    kept[rows.astype(np.int64).reshape(-1)] = True
    return kept
