"""Kernel Inception distance: an unbiased distance of two sets of features, with its spread."""

from __future__ import annotations

import numpy as np

from imagegen.evaluate.frechet import check_features
from rqtoolkit.errors import ShapeError

__all__ = ["SUBSETS", "SUBSET_SIZE", "kernel_distance"]

SUBSETS, SUBSET_SIZE = 100, 1000


def kernel_distance(
    a: np.ndarray,
    b: np.ndarray,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float | None]:
    """Return mean and standard deviation of the squared MMD over random subsets.

    The maximum mean discrepancy with the kernel (x·y / dim + 1)³; the estimate of each subset is
    unbiased, so that its mean for two sets of one distribution is 0 whatever the number of images,
    and may lie under it. Subsets are at most half of the smaller set: larger ones would be nearly
    the same, and their spread would say nothing of the set's.

    Args:
        a: Features, shape (N, dim).
        b: Features, shape (M, dim).
        subsets: Pairs of subsets drawn.
        subset_size: Rows of each, at most.
        seed: Fixes the subsets.

    Returns:
        Mean, and standard deviation over subsets. Under four rows there are no subsets: the one
        estimate there is, and None.

    Raises:
        ShapeError: If the sets are not matrices of equal width with at least two rows.
        DataError: If a feature is NaN or infinite.

    References:
        Bińkowski, Sutherland, Arbel & Gretton, "Demystifying MMD GANs", ICLR 2018,
        https://arxiv.org/abs/1801.01401.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShapeError(
            "kernel_distance: needs two matrices of equal width and at least two rows; "
            f"got shapes {a.shape} and {b.shape}. Pass features of one extractor."
        )
    check_features("kernel_distance", a)
    check_features("kernel_distance", b)
    generator = np.random.default_rng(seed)
    smaller = min(len(a), len(b))
    rows = min(subset_size, smaller // 2)
    if rows < 2:
        rows, subsets = smaller, 1
    found = [
        _squared_discrepancy(
            a[generator.choice(len(a), rows, replace=False)].astype(np.float64),
            b[generator.choice(len(b), rows, replace=False)].astype(np.float64),
        )
        for _ in range(subsets)
    ]
    return float(np.mean(found)), float(np.std(found)) if len(found) > 1 else None


def _squared_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD of two sets of equally many rows."""
    n, dim = x.shape
    within_x, within_y = (x @ x.T / dim + 1) ** 3, (y @ y.T / dim + 1) ** 3
    between = (x @ y.T / dim + 1) ** 3
    pairs = within_x.sum() - np.trace(within_x) + within_y.sum() - np.trace(within_y)
    return float(pairs / (n * (n - 1)) - 2 * between.mean())
