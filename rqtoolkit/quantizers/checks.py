"""What quantizers accept: sizes, codes and training data, with the errors for the rest."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.errors import ConfigError, DataError, ShapeError

__all__ = ["check_codes", "check_finite", "level_sizes", "training_rows"]


def level_sizes(
    dim: int, depth: int, codebook_size: int | Sequence[int], *, shared_codebook: bool
) -> tuple[int, ...]:
    """Return the codebook size of each level.

    Raises:
        ConfigError: If a number is not positive, the sizes are not one per level, or a shared
            codebook is asked to have several sizes.
    """
    if min(dim, depth) < 1:
        raise ConfigError(
            f"ResidualQuantizer: dim and depth have to be at least 1; got dim={dim}, depth={depth}."
        )
    if isinstance(codebook_size, Sequence):
        sizes = tuple(int(size) for size in codebook_size)
    else:
        sizes = (int(codebook_size),) * depth
    if len(sizes) != depth or min(sizes) < 1:
        raise ConfigError(
            f"ResidualQuantizer: codebook_size={codebook_size} has to be positive, one number or "
            f"one for each of depth={depth} levels."
        )
    if shared_codebook and len(set(sizes)) > 1:
        raise ConfigError(
            f"ResidualQuantizer: codebook_size={codebook_size} differs over levels, which one "
            "shared codebook cannot. Pass one number, or shared_codebook=False."
        )
    return sizes


def check_finite(x: Tensor, where: str) -> None:
    """Refuse vectors (N, dim) with NaN or infinite values, naming the first.

    Raises:
        DataError: If there are any.
    """
    bad = ~x.isfinite().all(dim=1)
    if bool(bad.any()):
        raise DataError(
            f"ResidualQuantizer.{where}: vectors have to be finite; got NaN or infinity in "
            f"{int(bad.sum())} of {len(x)} rows, first in row {int(bad.int().argmax())}. "
            "Remove or mend them."
        )


def check_codes(codes: Tensor, codebook_sizes: Sequence[int], where: str) -> Tensor:
    """Return codes (..., d) as (N, d) int64.

    Raises:
        ShapeError: If d is 0 or more than there are levels.
        DataError: If the codes are not integers, or out of range.
    """
    depth = len(codebook_sizes)
    given = codes.shape[-1] if codes.ndim else 0
    if not 1 <= given <= depth:
        raise ShapeError(
            f"ResidualQuantizer.{where}: codes has depth {given} but the quantizer has depth "
            f"{depth}; got shape {tuple(codes.shape)}. Pass codes[..., :{depth}], or load the "
            "matching file."
        )
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise DataError(f"ResidualQuantizer.{where}: codes have to be integers; got {codes.dtype}.")
    flat = codes.reshape(-1, given).long()
    if not torch.compiler.is_compiling():
        sizes = torch.tensor(codebook_sizes[:given], device=flat.device)
        if bool(((flat < 0) | (flat >= sizes)).any()):
            raise DataError(
                f"ResidualQuantizer.{where}: codes have to be in [0, codebook_size) with "
                f"codebook_sizes={tuple(codebook_sizes)}; got codes from {int(flat.min())} to "
                f"{int(flat.max())}. Load the quantizer that made them."
            )
    return flat


def training_rows(X: NDArray | Tensor, dim: int, min_rows: int, max_rows: int, seed: int) -> Tensor:
    """Return at most max_rows rows of X, drawn at random, as finite float32.

    Raises:
        ShapeError: If X is not (N, dim).
        DataError: If X is not numeric, not finite, or has fewer than min_rows rows to offer.
    """
    if X.ndim != 2 or X.shape[1] != dim:
        raise ShapeError(
            f"ResidualQuantizer.fit: X has to have shape (N, {dim}); got {tuple(X.shape)}."
        )
    if isinstance(X, np.ndarray) and X.dtype.kind not in "fiu":
        raise DataError(f"ResidualQuantizer.fit: X has to be numeric; got dtype {X.dtype}.")
    rows = min(len(X), max_rows)
    if rows < min_rows:
        raise DataError(
            f"ResidualQuantizer.fit: codebook_size={min_rows} needs at least as many vectors; "
            f"got {rows}. Give more vectors or a smaller codebook_size."
        )
    if len(X) > max_rows:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(X), generator=generator)[:max_rows].sort().values
        X = X[drawn.numpy()] if isinstance(X, np.ndarray) else X[drawn.to(X.device)]
    # A copy also where nothing changes: a read-only memory map is no tensor's to share.
    x = torch.from_numpy(np.array(X, dtype=np.float32)) if isinstance(X, np.ndarray) else X.float()
    check_finite(x, "fit")
    return x
