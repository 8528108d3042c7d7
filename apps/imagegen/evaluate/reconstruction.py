"""Errors of reconstructions at every depth, gathered over any number of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagegen.evaluate.pixels import SSIM_SIDE, psnr, ssim
from imagegen.images import to_float
from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.rate_distortion import error_ratio

__all__ = ["LPIPS_SIDE", "Distance", "ReconstructionTally"]

Distance = Callable[[Tensor, Tensor], Tensor]
"""A distance of images in [-1, 1], two (B, C, H, W) to (B,), as LPIPS is."""

LPIPS_SIDE = 16
LPIPS_BATCH = 32


class ReconstructionTally:
    """Adds up errors of reconstructions, a batch at a time, in memory that does not grow.

    Args:
        perceptual: LPIPS, or None to leave it out.
        device: Where `perceptual` computes.
    """

    def __init__(
        self, perceptual: Distance | None = None, *, device: str | torch.device = "cpu"
    ) -> None:
        self.perceptual, self.device = perceptual, device
        self.images = 0
        self._sum = self._squares = np.zeros(0)
        self._error = np.zeros(0)
        self._means: dict[str, np.ndarray] = {}

    def add(self, images: np.ndarray, levels: np.ndarray) -> None:
        """Count a batch.

        Args:
            images: Shape (B, H, W, C), uint8.
            levels: Their reconstructions from 1 … depth levels, shape (depth, B, H, W, C), uint8.

        Raises:
            ShapeError: If they do not fit together.
        """
        if levels.ndim != 5 or levels.shape[1:] != images.shape:
            raise ShapeError(
                f"ReconstructionTally.add: levels must be (depth, B, H, W, C) for images (B, H, W, "
                f"C); got {levels.shape} and {images.shape}. Pass what reconstruct made of them."
            )
        if not self.images:
            self._sum = np.zeros(images.shape[1:])
            self._squares, self._error = np.zeros(images.shape[1:]), np.zeros(len(levels))
        self.images += len(images)
        pixels = images.astype(np.float64)
        self._sum += pixels.sum(0)
        self._squares += np.square(pixels).sum(0)
        self._error += [np.square(pixels - level).sum() for level in levels]
        self._add_mean("psnr", [psnr(images, level) for level in levels])
        if min(images.shape[1:3]) >= SSIM_SIDE:
            self._add_mean("ssim", [ssim(images, level) for level in levels])
        if self.perceptual is not None and min(images.shape[1:3]) >= LPIPS_SIDE:
            self._add_mean("lpips", [self._distances(images, level) for level in levels])

    def _add_mean(self, name: str, values: list[np.ndarray]) -> None:
        self._means[name] = self._means.get(name, 0) + np.array([v.sum() for v in values])

    @torch.no_grad()
    def _distances(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        assert self.perceptual is not None
        parts = []
        for start in range(0, len(images), LPIPS_BATCH):
            rows = slice(start, start + LPIPS_BATCH)
            x, y = (
                to_float(np.ascontiguousarray(a[rows])).to(self.device) for a in (images, others)
            )
            parts.append(self.perceptual(x, y).double().cpu().numpy())
        return np.concatenate(parts)

    def figures(self) -> dict[str, list[float]]:
        """Return the errors, one a depth.

        Returns:
            `relative_error` (squared error of pixels over that about the mean image), `psnr` in dB,
            and where images are large enough `ssim` (11 pixels) and `lpips` (16, where given); the
            last three are means over images.

        Raises:
            DataError: If no image was counted.
        """
        if not self.images:
            raise DataError("ReconstructionTally: no image was counted; got none. Call add first.")
        spread = float((self._squares - np.square(self._sum) / self.images).sum())
        found: dict[str, Any] = {
            "relative_error": [error_ratio(float(error), spread) for error in self._error]
        }
        for name, total in self._means.items():
            found[name] = (total / self.images).tolist()
        return found
