"""Differentiable augmentation: what the discriminator sees is altered, gradients pass through.

One draw serves an image and its reconstruction, so that the two differ by nothing else.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rqtoolkit.errors import ConfigError

__all__ = ["POLICIES", "draw_augmentation"]

Augmentation = Callable[[Tensor], Tensor]

_TRANSLATION = 0.125  # largest shift, as a share of a side
_CUTOUT = 0.5  # side of the square cut out, as a share of a side


def draw_augmentation(
    policies: Sequence[str],
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
) -> Augmentation:
    """Draw how each image of a batch is altered.

    Args:
        policies: Any of "color" (brightness, saturation, contrast), "translation" (by up to an
            eighth, grey comes in) and "cutout" (a square of half the side turns grey), in order.
        shape: Shape (B, C, H, W) of the batch.
        generator: Source of the draws, on the device; torch's default one when None.
        device: Where the images are.

    Returns:
        A function of images (B, C, H, W), the same alteration each time it is called.

    Raises:
        ConfigError: If a policy is unknown.

    References:
        Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020,
        https://arxiv.org/abs/2006.10738, section 3.2.
    """
    unknown = [name for name in policies if name not in POLICIES]
    if unknown:
        raise ConfigError(
            f"draw_augmentation: policies={list(policies)} must be among {', '.join(POLICIES)}; "
            f"got {unknown[0]!r}. Choose among those."
        )
    batch, _, height, width = shape

    def draw() -> Tensor:
        return torch.rand(batch, generator=generator, device=device)

    steps = [POLICIES[name](draw, height, width) for name in policies]

    def augmentation(images: Tensor) -> Tensor:
        for step in steps:
            images = step(images)
        return images

    return augmentation


def _color(draw: Callable[[], Tensor], height: int, width: int) -> Augmentation:  # noqa: ARG001
    brightness, saturation, contrast = (draw()[:, None, None, None] for _ in range(3))

    def apply(x: Tensor) -> Tensor:
        x = x + (brightness - 0.5)
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * (2 * saturation)
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + (x - mean) * (contrast + 0.5)

    return apply


def _translation(draw: Callable[[], Tensor], height: int, width: int) -> Augmentation:
    rows, row_inside = _shifted(draw(), height)
    columns, column_inside = _shifted(draw(), width)
    inside = (row_inside[:, :, None] & column_inside[:, None, :])[:, None]
    image = torch.arange(len(rows), device=rows.device)[:, None, None]

    def apply(x: Tensor) -> Tensor:
        moved = x.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
        return moved * inside

    return apply


def _shifted(draws: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return where the places (B, side) of a shifted axis come from, and which are inside."""
    most = int(side * _TRANSLATION + 0.5)
    shifts = (draws * (2 * most + 1)).floor().long() - most
    places = torch.arange(side, device=draws.device) + shifts[:, None]
    return places.clamp(0, side - 1), (places >= 0) & (places < side)


def _cutout(draw: Callable[[], Tensor], height: int, width: int) -> Augmentation:
    rows, columns = _cut(draw(), height), _cut(draw(), width)
    keep = ~(rows[:, :, None] & columns[:, None, :])[:, None]

    def apply(x: Tensor) -> Tensor:
        return x * keep

    return apply


def _cut(draws: Tensor, side: int) -> Tensor:
    """Return the places (B, side) of an axis that are cut; the cut may hang over an end."""
    size = int(side * _CUTOUT + 0.5)
    starts = (draws * (side + 1 - size % 2)).floor().long() - size // 2
    places = torch.arange(side, device=draws.device) - starts[:, None]
    return (places >= 0) & (places < size)


POLICIES: dict[str, Callable[[Callable[[], Tensor], int, int], Augmentation]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}
"""The alterations by name."""
