"""How well any code of so many bits could do if images were Gaussian."""

from collections.abc import Sequence

import numpy as np

from rqtoolkit.errors import ShapeError
from rqtoolkit.functional.rate_distortion import gaussian_distortion

__all__ = ["image_bound"]


def image_bound(images: np.ndarray, bits: Sequence[float]) -> list[float]:
    """Return the Gaussian rate-distortion bound of images as a relative error, one for each rate.

    The distortion of reverse water-filling on the eigenvalues of the pixels' covariance, over
    their sum. No code of that rate does better on Gaussian pixels with this covariance. Images are
    not Gaussian: what a learned code gains under the curve is structure beyond second order.

    Args:
        images: Shape (N, H, W, C), uint8: the images whose error is compared with the bound.
        bits: Rates in bits per image.

    Returns:
        Relative errors, in the order of bits; 0 at every rate for images that are all equal.

    Raises:
        ShapeError: If there are fewer than two images.
    """
    if len(images) < 2:
        raise ShapeError(
            f"image_bound: needs at least two images for a covariance; got {len(images)}. Add more."
        )
    pixels = images.reshape(len(images), -1).astype(np.float64)
    pixels -= pixels.mean(0)
    count, dim = pixels.shape
    product = pixels.T @ pixels if dim <= count else pixels @ pixels.T  # equal positive eigenvalues
    variances = np.linalg.eigvalsh(product).clip(0) / count
    total = float(variances.sum())
    if total == 0:
        return [0.0] * len(bits)
    return [float(gaussian_distortion(variances, rate)) / total for rate in bits]
