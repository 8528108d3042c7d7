"""How near reconstructions are to their images, pixel by pixel and window by window."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rqtoolkit.errors import ShapeError

__all__ = ["MOST_PSNR", "SSIM_SIDE", "psnr", "ssim"]

MOST_PSNR = 100.0  # of equal images, in dB: their ratio is infinite, and a mean must not be
SSIM_SIDE, SSIM_SIGMA = 11, 1.5
BATCH = 64


def psnr(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each pair, 10 log10(255² / mean squared error).

    Args:
        images: Shape (N, H, W, C), uint8.
        others: The same shape.

    Returns:
        Decibels, shape (N,), float64; equal images count 100.

    Raises:
        ShapeError: If the shapes differ.
    """
    _check("psnr", images, others)
    axes = tuple(range(1, images.ndim))
    found = np.empty(len(images))
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        error = np.square(images[part].astype(np.float64) - others[part]).mean(axes)
        floor = 255**2 / 10 ** (MOST_PSNR / 10)
        found[part] = 10 * np.log10(255**2 / error.clip(floor))
    return found


def ssim(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each pair, mean over windows and channels.

    The published settings: Gaussian windows of 11x11 (sigma 1.5) that lie wholly in the image,
    K1 = 0.01, K2 = 0.03, range 255, in float64. Colour images are the mean of their channels.

    Args:
        images: Shape (N, H, W, C), uint8, at least 11x11.
        others: The same shape.

    Returns:
        Similarities up to 1, shape (N,), float64.

    Raises:
        ShapeError: If the shapes differ, or images are smaller than a window.

    References:
        Wang, Bovik, Sheikh & Simoncelli, "Image Quality Assessment: From Error Visibility to
        Structural Similarity", IEEE Transactions on Image Processing, 2004.
    """
    _check("ssim", images, others)
    if min(images.shape[1:3]) < SSIM_SIDE:
        raise ShapeError(
            f"ssim: images must be at least {SSIM_SIDE}x{SSIM_SIDE}; got shape {images.shape}. "
            f"Leave the score out for smaller ones."
        )
    found = [
        _ssim(_planes(images[start : start + BATCH]), _planes(others[start : start + BATCH]))
        for start in range(0, len(images), BATCH)
    ]
    return torch.cat(found).numpy() if found else np.empty(0)


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    """Similarity (B,) of planes (B, C, H, W)."""
    small_1, small_2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + small_1) * (2 * covariance + small_2)
    spread = (mean_x**2 + mean_y**2 + small_1) * (variance_x + variance_y + small_2)
    return (likeness / spread).mean((1, 2, 3))


def _blur(planes: Tensor) -> Tensor:
    """Weighted mean of every window, by rows and then by columns."""
    places = torch.arange(SSIM_SIDE, dtype=planes.dtype) - SSIM_SIDE // 2
    window = torch.exp(-(places**2) / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).repeat(planes.shape[1], 1, 1, 1)
    down, across = window.transpose(2, 3), window
    return F.conv2d(F.conv2d(planes, down, groups=len(down)), across, groups=len(across))


def _planes(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).double()


def _check(where: str, images: np.ndarray, others: np.ndarray) -> None:
    if images.shape != others.shape or images.ndim != 4:
        raise ShapeError(
            f"{where}: needs two sets of images (N, H, W, C) of one shape; got {images.shape} and "
            f"{others.shape}. Pass each image's own reconstruction."
        )
