"""The Inception score: classes that are certain for each image and even over all of them."""

from __future__ import annotations

import numpy as np

from rqtoolkit.errors import DataError, ShapeError

__all__ = ["SPLITS", "inception_score"]

SPLITS = 10


def inception_score(
    probabilities: np.ndarray, *, splits: int = SPLITS, seed: int = 0
) -> tuple[float, float]:
    """Return mean and standard deviation of exp(mean KL(p(y|x) || p(y))) over parts of a set.

    Rows are put in random order first: samples usually come sorted by class, and a part of few
    classes would score low however good the images.

    Args:
        probabilities: Class probabilities of each image, shape (N, K).
        splits: Equal parts the set is divided into.
        seed: Fixes the order.

    Returns:
        Mean and standard deviation over the parts; 1 is the worst, K the best.

    Raises:
        ShapeError: If probabilities is not (N, K) with N at least `splits`.
        DataError: If rows are not probabilities.

    References:
        Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016,
        https://arxiv.org/abs/1606.03498.
    """
    if probabilities.ndim != 2 or not 1 <= splits <= len(probabilities):
        raise ShapeError(
            f"inception_score: probabilities must be (N, K) with N at least splits={splits}; got "
            f"shape {probabilities.shape}. Use more images or fewer splits."
        )
    p = probabilities.astype(np.float64)
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-4)):
        raise DataError(
            "inception_score: rows must be probabilities that sum to 1; got others. Apply a "
            "softmax to logits first."
        )
    order = np.random.default_rng(seed).permutation(len(p))
    found = []
    for rows in np.array_split(order, splits):
        part = p[rows]
        mean = part.mean(0)
        # 0 log 0 is 0: a class the network never sees adds nothing.
        ratio = np.log(np.where(part > 0, part, 1)) - np.log(np.where(mean > 0, mean, 1))
        found.append(np.exp((part * ratio).sum(1).mean()))
    return float(np.mean(found)), float(np.std(found))
