"""Images moved by whole pixels, and the condition that tells the transformer by how much."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["conditions", "count_shifts", "draw_shifts", "shift_images"]


def count_shifts(reach: int) -> int:
    """Return how many ways there are to move by up to `reach` pixels along both axes."""
    return (2 * reach + 1) ** 2


def draw_shifts(rows: Tensor, reach: int, *, unmoved: float, seed: int) -> Tensor:
    """Draw a shift for every image.

    Each is a function of seed and row alone: how a batch is divided among processes and passes
    changes nothing.

    Args:
        rows: Which images of the data set, shape (B,), int64.
        reach: Pixels to move by, at most.
        unmoved: Share that is not moved by force; the rest is drawn from all shifts alike.
        seed: Fixes the result.

    Returns:
        Shift numbers, shape (B,), int64; 0 leaves an image in place.
    """
    if not reach:
        return torch.zeros_like(rows)
    states = [np.random.SeedSequence((seed, row)).generate_state(2) for row in rows.tolist()]
    uniform = np.array(states).reshape(-1, 2) / 2**32
    drawn = (uniform[:, 0] * count_shifts(reach)).astype(np.int64)
    return torch.from_numpy(np.where(uniform[:, 1] < unmoved, 0, drawn))


def shift_images(images: Tensor, shifts: Tensor, reach: int) -> Tensor:
    """Move every image by its shift; border pixels repeat into what becomes free.

    Args:
        images: Images, shape (B, C, H, W).
        shifts: Shift numbers of `draw_shifts`, shape (B,).
        reach: The reach they were drawn for.

    Returns:
        Moved images, shape (B, C, H, W).
    """
    if not reach:
        return images
    B, C, H, W = images.shape
    side = 2 * reach + 1
    # number 0 is the middle of the square of offsets
    place = ((shifts + side * side // 2) % (side * side)).to(images.device)
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    rows = (place // side)[:, None] + torch.arange(H, device=images.device)
    columns = (place % side)[:, None] + torch.arange(W, device=images.device)
    batch = torch.arange(B, device=images.device)[:, None, None, None]
    channel = torch.arange(C, device=images.device)[None, :, None, None]
    return padded[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


def conditions(labels: Tensor | None, shifts: Tensor, *, reach: int) -> Tensor | None:
    """Number what the transformer is told: the class, and by how much the image was moved.

    Args:
        labels: Classes, shape (B,), int64; None for images without.
        shifts: Shift numbers, shape (B,), int64; 0 is unmoved.
        reach: Reach of the shifts.

    Returns:
        Conditions, shape (B,), int64; None where there is nothing to tell.
    """
    if labels is None:
        return shifts if reach else None
    return labels * count_shifts(reach) + shifts
