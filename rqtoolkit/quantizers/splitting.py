"""Give entries that no vector chooses a share of what the costliest entries stand for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rqtoolkit.functional.assign import level_tables, sum_codewords
from rqtoolkit.functional.encoding import encode_vectors
from rqtoolkit.quantizers.joint import mean_error

__all__ = ["split_entries"]

_PASSES = 4  # encoding anew may leave other entries unused


def split_entries(
    x: Tensor,
    tables: Tensor,
    codebook_sizes: Sequence[int],
    *,
    beam: int,
    prefix_weight: float = 0.0,
) -> Tensor:
    """Put every entry to use, as far as the vectors differ.

    Joint training leaves an entry that vectors turned away from where it was. Here it joins the
    entry of its level whose vectors have the largest error in total: each of the two moves to the
    middle of a half of them.

    Args:
        x: Vectors, shape (N, dim), float32.
        tables: Shape (depth, K, dim), one table a level; not changed.
        codebook_sizes: Entries of each level.
        beam: Prefixes kept per vector.
        prefix_weight: Weight of the error after each shorter code beside that of the whole.

    Returns:
        Tables, shape (depth, K, dim), whose error on x is no larger.
    """
    depth = len(tables)
    judge: dict[str, Any] = {"beam": beam, "prefix_weight": prefix_weight}
    for _ in range(_PASSES):
        levels = level_tables(tables, codebook_sizes, depth)
        codes = encode_vectors(x, levels, beam=beam)
        columns = zip(codes.T, codebook_sizes, strict=True)
        unused = [(torch.bincount(own, minlength=size) == 0).nonzero() for own, size in columns]
        if not any(map(len, unused)):
            break
        split = tables.clone()
        for level, entries in enumerate(unused):
            residuals = x - sum_codewords(codes, level_tables(split, codebook_sizes, depth))
            _split_level(residuals, codes[:, level], split[level], entries[:, 0].tolist())
        before, after = (mean_error(x, t, codebook_sizes, depth, **judge) for t in (tables, split))
        if after > before:
            break
        tables = split
    return tables


def _split_level(residuals: Tensor, codes: Tensor, table: Tensor, unused: Sequence[int]) -> None:
    """Let some entries of a table take over vectors of others; changes all but `unused`."""
    squared = residuals.double().square().sum(dim=1)
    costs = torch.bincount(codes, weights=squared, minlength=len(table))
    waiting = list(unused)
    while waiting and costs.max() > 0:
        donor = int(costs.argmax())
        rows = (codes == donor).nonzero()[:, 0]
        costs[donor] = 0
        beyond = _beyond_middle(residuals[rows])
        if not beyond.any():  # the vectors all lack the same
            continue
        entry, origin = waiting.pop(0), table[donor].clone()
        codes[rows[beyond]] = entry
        for own, half in ((entry, rows[beyond]), (donor, rows[~beyond])):
            shift = residuals[half].mean(dim=0)
            table[own] = origin + shift
            residuals[half] -= shift
            costs[own] = residuals[half].double().square().sum()


def _beyond_middle(points: Tensor) -> Tensor:
    """Tell which of some points (n, dim) lie beyond their mean along their widest axis.

    Returns:
        Shape (n,), bool; all False where the points are the same.
    """
    centred = (points - points.mean(dim=0)).double()
    axis = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    return centred @ axis > 0
