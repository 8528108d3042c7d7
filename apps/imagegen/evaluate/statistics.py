"""Features of a set of images, kept as mean and covariance, and some of them as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from imagegen.evaluate.extractors import Extractor
from imagegen.evaluate.frechet import check_features
from rqtoolkit.errors import DataError
from rqtoolkit.functional.progress import Progress, report

__all__ = ["MOST_FEATURES", "FeatureStatistics", "gather_statistics"]

MOST_FEATURES = 10_000  # as in the evaluation suite of Dhariwal & Nichol, 2021


@dataclass(frozen=True)
class FeatureStatistics:
    """A set of images as seen through an extractor.

    Attributes:
        images: How many images mean and covariance are of.
        mean: Shape (dim,), float64.
        covariance: Shape (dim, dim), float64, divided by images - 1.
        features: Features of some of the images, evenly spread over the set, shape (M, dim),
            float32; None where only mean and covariance are known.
    """

    images: int
    mean: np.ndarray
    covariance: np.ndarray
    features: np.ndarray | None


def gather_statistics(
    extractor: Extractor,
    batches: Iterable[np.ndarray],
    *,
    total: int,
    most_features: int = MOST_FEATURES,
    title: str = "features",
    progress: Progress | None = None,
) -> FeatureStatistics:
    """Run images through an extractor, a batch at a time, in memory that does not grow with them.

    Args:
        extractor: Looks at the images.
        batches: Images, each (B, H, W, C), uint8, together `total`, or fewer where some could not
            be read.
        total: Number of images.
        most_features: Features kept as they are, at most.
        title: What is being looked at, for progress.
        progress: Called as progress(description, done, total).

    Returns:
        Mean and covariance of all, features of at most `most_features`.

    Raises:
        DataError: If there are fewer than 2 images or more than `total`, or a feature is not
            finite.
    """
    # A set of rows evenly spread; of all rows where there are few.
    wanted = np.unique(np.linspace(0, max(total - 1, 0), min(total, most_features)).round())
    kept: list[np.ndarray] = []
    done = 0
    shift = np.zeros(extractor.dim)
    sums, products = np.zeros(extractor.dim), np.zeros((extractor.dim, extractor.dim))
    for batch in batches:
        features = extractor.features(batch)
        check_features("gather_statistics", features)
        rows = wanted[(wanted >= done) & (wanted < done + len(features))].astype(int) - done
        kept.append(features[rows])
        if not done:  # sums around a mean near the true one lose no digits
            shift = features.mean(0, dtype=np.float64)
        centred = features - shift
        sums += centred.sum(0)
        products += centred.T @ centred
        done += len(features)
        report(progress, title, done, total)
    if not 2 <= done <= total:
        raise DataError(
            f"gather_statistics: batches must hold at least 2 images and at most total={total}; "
            f"got {done}. Pass more, or the true total."
        )
    mean = sums / done
    covariance = (products - done * np.outer(mean, mean)) / (done - 1)
    return FeatureStatistics(done, mean + shift, covariance, np.concatenate(kept))
