"""How far two versions of semantic IDs agree on the items they have in common."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Drift", "measure_drift", "relabelled_agreement"]


@dataclass(frozen=True)
class Drift:
    """What changed from an older version to this one.

    Attributes:
        against: The older version.
        common: Items of both.
        added: Items of this version alone.
        removed: Items of the older version alone.
        kept: Share of common items whose first 1, 2, … codes are the same; empty without any.
        kept_relabelled: Share that keep the first code once the codes of one version are renamed to
            fit the other best: what changed apart from names. None without common items.
    """

    against: str
    common: int
    added: int
    removed: int
    kept: tuple[float, ...]
    kept_relabelled: float | None


def relabelled_agreement(old: NDArray[np.int64], new: NDArray[np.int64]) -> float:
    """Return the share of items on which two labellings agree after the best renaming.

    Args:
        old: Labels, shape (N,), from 0.
        new: Other labels of the same items, shape (N,), from 0.

    References:
        Kuhn, "The Hungarian method for the assignment problem", Naval Research Logistics 1955.
    """
    from scipy.optimize import linear_sum_assignment

    _, old = np.unique(old, return_inverse=True)
    _, new = np.unique(new, return_inverse=True)
    width = int(new.max()) + 1
    counts = np.bincount(old * width + new, minlength=(int(old.max()) + 1) * width)
    table = counts.reshape(-1, width)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(old))


def measure_drift(
    item_ids: NDArray,
    codes: NDArray[np.int64],
    older_item_ids: NDArray,
    older_codes: NDArray[np.int64],
    *,
    against: str = "",
) -> Drift:
    """Compare the codes that two versions give to the same items.

    Args:
        item_ids: Items of this version, shape (N,).
        codes: Their codes, shape (N, length).
        older_item_ids: Items of the older version, shape (M,).
        older_codes: Their codes, shape (M, length); of different lengths the shorter is compared.
        against: Name of the older version, for the result.
    """
    if item_ids.dtype.kind == older_item_ids.dtype.kind:
        common, rows, older_rows = np.intersect1d(
            item_ids, older_item_ids, assume_unique=True, return_indices=True
        )
    else:  # integers and strings have nothing in common
        common = rows = older_rows = np.zeros(0, np.int64)
    kept: tuple[float, ...] = ()
    relabelled = None
    if len(common):
        length = min(codes.shape[1], older_codes.shape[1])
        now, before = codes[rows, :length], older_codes[older_rows, :length]
        kept = tuple(np.logical_and.accumulate(now == before, axis=1).mean(axis=0).tolist())
        relabelled = relabelled_agreement(before[:, 0], now[:, 0])
    return Drift(
        against=against,
        common=len(common),
        added=len(item_ids) - len(common),
        removed=len(older_item_ids) - len(common),
        kept=kept,
        kept_relabelled=relabelled,
    )
