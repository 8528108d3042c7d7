"""What nearest neighbours say of samples: precision, recall, density, coverage, and copying."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.progress import Progress, report

__all__ = [
    "NeighbourScores",
    "duplicate_share",
    "nearest_distances",
    "neighbour_radii",
    "neighbour_scores",
]

_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class NeighbourScores:
    """Four shares that together tell bad samples from missing ones.

    Attributes:
        precision: Share of samples inside the real images' neighbourhoods: are they plausible?
        recall: Share of real images inside the samples' neighbourhoods: is everything there?
        density: Real neighbourhoods a sample lies in, over k; about 1 for real data, may exceed 1.
        coverage: Share of real neighbourhoods with at least one sample in them.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_radii(features: np.ndarray, *, k: int) -> np.ndarray:
    """Return the distance of each row to its k-th nearest other row, shape (N,).

    Raises:
        ShapeError: If features is not (N, dim).
        DataError: If there are not more than k rows, or a feature is not finite.
    """
    if features.ndim != 2:
        raise ShapeError(
            f"neighbour_radii: features must be (N, dim); got shape {features.shape}. "
            "Flatten what is behind the first axis."
        )
    if not np.isfinite(features).all():
        raise DataError("neighbour_radii: features must be finite; got NaN or infinity.")
    if not 1 <= k < len(features):
        raise DataError(
            f"neighbour_radii: k={k} must be at least 1 and under the number of rows; "
            f"got {len(features)} rows. Use more images or a smaller k."
        )
    radii = np.empty(len(features))
    for start, distances in _distance_chunks(features, features):
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf  # a row is not its own neighbour
        radii[start : start + len(distances)] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def neighbour_scores(
    real: np.ndarray, samples: np.ndarray, *, k: int = 5, real_radii: np.ndarray | None = None
) -> NeighbourScores:
    """Score samples by the balls around real images and around samples that reach k neighbours.

    Args:
        real: Features of real images, shape (N, dim).
        samples: Features of samples, shape (M, dim).
        k: A ball's radius is the distance to the k-th nearest image of the same set. A ball is
            open, as in the code of Naeem et al.: a point at just that distance is outside.
        real_radii: `neighbour_radii(real, k=k)`, where it is already known.

    Returns:
        Precision and recall (Kynkäänniemi et al.), density and coverage (Naeem et al.).

    Raises:
        ShapeError: If the sets are not matrices of equal width.
        DataError: If either has not more than k rows, or a feature is not finite.

    References:
        Kynkäänniemi et al., "Improved Precision and Recall Metric…", NeurIPS 2019.
        Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020.
    """
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1]:
        raise ShapeError(
            "neighbour_scores: needs two matrices of equal width; "
            f"got shapes {real.shape} and {samples.shape}. Pass features of one extractor."
        )
    if real_radii is None:
        real_radii = neighbour_radii(real, k=k)
    sample_radii = neighbour_radii(samples, k=k)
    balls = np.zeros(len(samples), np.int64)  # real balls that hold each sample
    recalled = covered = 0
    for start, distances in _distance_chunks(real, samples):
        inside = distances < real_radii[start : start + len(distances), None]
        balls += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((distances < sample_radii).any(1).sum())
    return NeighbourScores(
        precision=float((balls > 0).mean()),
        recall=recalled / len(real),
        density=float(balls.mean() / k),
        coverage=covered / len(real),
    )


def _distance_chunks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, distances of some rows of a to all of b), within a fixed memory.

    Sums of squared differences, not the expanded square: symmetric to the bit and exactly 0 for
    copies, which is what comparing a distance with a radius rests on.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    rows = max(1, _CHUNK_BYTES // (8 * max(1, len(b))))
    for start in range(0, len(a), rows):
        yield start, cdist(a[start : start + rows], b)


def nearest_distances(
    images: np.ndarray, others: np.ndarray, *, progress: Progress | None = None
) -> np.ndarray:
    """Return how far each image is from its nearest other: root mean square over its pixels.

    Exact: the sums are integers, which float64 holds without rounding, so 0 means a copy.

    Args:
        images: Shape (N, H, W, C), uint8.
        others: Shape (M, H, W, C), uint8.
        progress: Called as progress(description, done, total).

    Returns:
        Distances in grey levels (0 to 255), shape (N,), float64.

    Raises:
        ShapeError: If the images differ in size.
    """
    if images.shape[1:] != others.shape[1:] or not len(others):
        raise ShapeError(
            "nearest_distances: needs images of one size to compare with; "
            f"got shapes {images.shape} and {others.shape}. Resize one of them."
        )
    dim = int(np.prod(images.shape[1:]))
    rows = max(1, min(2048, _CHUNK_BYTES // (8 * dim)))
    nearest = np.full(len(images), np.inf)
    flat, other = images.reshape(len(images), dim), others.reshape(len(others), dim)
    for start in range(0, len(other), rows):
        part = other[start : start + rows].astype(np.float64)
        norms = np.square(part).sum(1)
        for first in range(0, len(flat), rows):
            query = flat[first : first + rows].astype(np.float64)
            squared = np.square(query).sum(1)[:, None] - 2 * query @ part.T + norms
            block = slice(first, first + len(query))
            nearest[block] = np.minimum(nearest[block], squared.min(1))
        report(progress, "nearest training images", min(start + rows, len(other)), len(other))
    return np.sqrt(nearest / dim)


def duplicate_share(images: np.ndarray) -> float:
    """Return the share of images (N, H, W, C) that equal an earlier one to the bit."""
    unique = {image.tobytes() for image in images}
    return 1 - len(unique) / max(1, len(images))
