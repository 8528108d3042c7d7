"""Which levels count for which vectors: all, as many as asked for, or as many as chance leaves."""

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.quantizers import checks

if TYPE_CHECKING:
    from rqtoolkit.quantizers.base import Quantizer

__all__ = ["depths_to_use", "levels_in_use"]


def depths_to_use(
    quantizer: "Quantizer",
    shape: torch.Size,
    depth: int | Tensor | None,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor | None:
    """Return how many levels each of N vectors uses, shape (N,), or None where all use all.

    Args:
        quantizer: Whose `depth_dropout` it is: the chance, in training mode, that a sample (an
            index of the first axis) uses only the first 1, 2, … or all levels, all equally likely.
        shape: Shape of the codes without their last axis.
        depth: Levels to use, for all vectors, for each sample, or for each vector; tensors are
            clamped to what there is. Drawn when None.
        generator: Source of the draws, on the device.
        device: Where the vectors are.

    Raises:
        ConfigError: If depth is out of range.
        DataError: If it is a tensor of anything but integers.
        ShapeError: If it is a tensor of another shape.

    References:
        Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", 2021, section III-C.
        https://arxiv.org/abs/2107.03312
    """
    where = quantizer._name("forward")
    if isinstance(depth, Tensor):
        if depth.is_floating_point() or depth.is_complex() or depth.dtype == torch.bool:
            raise DataError(f"{where}: depth has to be integers; got {depth.dtype}.")
        if depth.shape != shape[: depth.ndim]:
            raise ShapeError(
                f"{where}: depth has to be one number, or have shape {tuple(shape)} or that of its "
                f"first axes; got {tuple(depth.shape)}."
            )
        # Clamped, as a refusal would wait for the device.
        depth = depth.clamp(1, quantizer.depth)
        return depth.reshape(*depth.shape, *[1] * (len(shape) - depth.ndim)).expand(shape).flatten()
    if depth is not None:
        checks.check_depth(where, depth, quantizer.depth)
        return torch.full((prod(shape),), depth, device=device)
    if not (quantizer.training and quantizer.depth_dropout > 0):
        return None
    samples = shape[:1]
    drops = torch.rand(samples, generator=generator, device=device) < quantizer.depth_dropout
    drawn = torch.randint(1, quantizer.depth + 1, samples, generator=generator, device=device)
    depths = torch.where(drops, drawn, quantizer.depth)
    return depths.reshape(*samples, *[1] * len(shape[1:])).expand(shape).reshape(-1)


def levels_in_use(real: Tensor | None, depths: Tensor | None, levels: int) -> Tensor | None:
    """Return which levels count for which vectors, (N, depth), 0 or 1, or None where all do.

    Args:
        real: False for padding, shape (N,); None without any.
        depths: Levels that each vector uses, shape (N,); None for all.
        levels: Levels of the quantizer.
    """
    if depths is not None:
        in_use = torch.arange(levels, device=depths.device) < depths[:, None]
        return (in_use if real is None else in_use & real[:, None]).float()
    return None if real is None else real[:, None].expand(-1, levels).float()
