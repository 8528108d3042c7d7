"""The bilinear resize of TensorFlow 1, which FID's feature network was always fed with."""

import torch
from torch import Tensor

from rqtoolkit.errors import ShapeError

__all__ = ["resize_bilinear"]


def resize_bilinear(images: Tensor, height: int, width: int) -> Tensor:
    """Resize images as TensorFlow 1 does: `tf.image.resize_bilinear(images, size)`.

    Output row i takes its value at input row y = i · H / height, the upper left corners of both
    grids aligned rather than the centres of pixels, between the rows ⌊y⌋ and ⌊y⌋ + 1, the last row
    repeated; columns alike. Nothing is averaged when images become smaller. Neither value of
    `align_corners` in torch's `interpolate` does this, and FID moves by tenths with the other rule.

    Args:
        images: Shape (N, C, H, W), floating point.
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        Images, shape (N, C, height, width), of the same type.

    Raises:
        ShapeError: If images does not have four axes, or a size is not positive.

    References:
        Parmar, Zhang & Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation",
        CVPR 2022, https://arxiv.org/abs/2104.11222.
    """
    if images.ndim != 4 or min(*images.shape[2:], height, width) < 1:
        raise ShapeError(
            f"resize_bilinear: images must be (N, C, H, W) and sizes positive; got shape "
            f"{tuple(images.shape)} to {height}x{width}. Add the axes that are missing."
        )
    upper, lower, down = _neighbours(images, 2, height)
    left, right, across = _neighbours(images, 3, width)
    rows = images[:, :, :, left] + (images[:, :, :, right] - images[:, :, :, left]) * across
    down = down[:, None]
    return rows[:, :, upper] + (rows[:, :, lower] - rows[:, :, upper]) * down


def _neighbours(images: Tensor, axis: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each output place the places before and after it, and the way between (0 to 1)."""
    length = images.shape[axis]
    # The product in float32, as TensorFlow forms it: in float64 a few places round otherwise.
    place = torch.arange(size, dtype=torch.float32, device=images.device) * (length / size)
    before = place.floor().long().clamp(max=length - 1)
    after = (before + 1).clamp(max=length - 1)
    return before, after, (place - before).to(images.dtype)
