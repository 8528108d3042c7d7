"""The codes that functions of semantic IDs accept, with the errors for the rest."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rqtoolkit.errors import DataError, ShapeError

__all__ = ["check_codes", "check_table"]


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
            f"{where}: codes have to be in [0, codebook_size) of {tuple(sizes)}; got "
            f"{codes.min(axis=0).tolist()} to {codes.max(axis=0).tolist()}. Take the offsets of a "
            "flat vocabulary away with rqtoolkit.semantic_ids.tokens.unflatten_codes."
        )
    return codes
