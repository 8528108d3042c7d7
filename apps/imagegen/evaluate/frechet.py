"""Fréchet distance between two sets of features, each taken as a Gaussian."""

import numpy as np

from rqtoolkit.errors import DataError, ShapeError

__all__ = ["check_features", "frechet_distance", "gaussian_distance"]


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance of two Gaussians fitted to features.

    The estimate is biased upwards by about 1/N: compare sets of one size only, and beside the
    distance between two sets of real images of that size.

    Args:
        a: Features, shape (N, dim).
        b: Features, shape (M, dim).

    Returns:
        The distance, 0 for equal sets.

    Raises:
        ShapeError: If the sets are not matrices of equal width with at least two rows.
        DataError: If a feature is NaN or infinite.

    References:
        Dowson & Landau, "The Fréchet distance between multivariate normal distributions", 1982.
        Heusel et al., "GANs Trained by a Two Time-Scale Update Rule…", NeurIPS 2017.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShapeError(
            "frechet_distance: needs two matrices of equal width and at least two rows; "
            f"got shapes {a.shape} and {b.shape}. Pass features of one extractor."
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    check_features("frechet_distance", a)
    check_features("frechet_distance", b)
    return gaussian_distance(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def gaussian_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Return the squared Fréchet distance of two Gaussians.

    |μ_a - μ_b|² + tr(Σ_a) + tr(Σ_b) - 2 tr((Σ_a Σ_b)^½), in float64. The last trace is the sum of
    the singular values of Σ_a^½ Σ_b^½: two symmetric roots and no root of a product, so that it is
    real and keeps its digits where covariances are singular, as with few samples or copies.

    Args:
        mean_a: Shape (dim,), float64.
        covariance_a: Shape (dim, dim), float64.
        mean_b: Shape (dim,), float64.
        covariance_b: Shape (dim, dim), float64.

    Raises:
        ShapeError: If the sizes differ.
    """
    shapes = [np.shape(x) for x in (mean_a, covariance_a, mean_b, covariance_b)]
    dim = shapes[0][-1] if shapes[0] else 0
    if shapes != [(dim,), (dim, dim)] * 2:
        raise ShapeError(
            f"gaussian_distance: needs two means (dim,) and covariances (dim, dim); got shapes "
            f"{shapes}. Pass statistics of one extractor."
        )
    overlap = np.linalg.svd(_root(covariance_a) @ _root(covariance_b), compute_uv=False).sum()
    shift = np.square(mean_a - mean_b).sum()
    distance = shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap
    return max(float(distance), 0.0)  # rounding leaves about -1e-13 for equal sets


def check_features(where: str, features: np.ndarray) -> None:
    """Refuse features that are NaN or infinite.

    Raises:
        DataError: If one is.
    """
    if not np.isfinite(features).all():
        raise DataError(f"{where}: features must be finite; got NaN or infinity.")


def _covariance(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - 1)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
