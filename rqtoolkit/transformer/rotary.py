"""Rotary positions: queries and keys turn with their coordinates, so that scores see distances."""

import torch
from torch import Tensor

from rqtoolkit.errors import ConfigError

__all__ = ["body_coordinates", "check_rotary", "rotary_table", "rotate"]

_BASE = 10_000.0


def body_coordinates(
    positions: tuple[int, ...], condition_length: int, device: torch.device | None = None
) -> Tensor:
    """Coordinates of everything the body reads: the condition, then the grid in raster order.

    The condition comes before the origin, its last input at -1 on every axis, the one before at
    -2, and so on: a sequence simply counts on.

    Args:
        positions: Axes of the grid; one for a sequence.
        condition_length: Inputs of the condition.
        device: Where the result goes.

    Returns:
        Shape (condition_length + positions, axes), int64.
    """
    axes = (torch.arange(size, device=device) for size in positions)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    before = torch.arange(-condition_length, 0, device=device).unsqueeze(1)
    return torch.cat([before.expand(-1, len(positions)), grid])


def rotary_table(coordinates: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Cosines and sines of the angles by which the pairs of a head turn at each position.

    The pairs are shared out over the axes, evenly and in order; with p pairs, the i-th of an axis
    turns by coordinate · 10000^(−i/p).

    Args:
        coordinates: Shape (T, axes).
        head_dim: Width of a head, even.
        dtype: Of the result and the arithmetic; at least float32.

    Returns:
        Shape (2, T, head_dim / 2).

    References:
        Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021,
        section 3.2. https://arxiv.org/abs/2104.09864
        Heo et al., "Rotary Position Embedding for Vision Transformer", ECCV 2024 (axial
        frequencies). https://arxiv.org/abs/2403.13298
    """
    angles = []
    columns = coordinates.to(dtype).unbind(1)
    pairs = torch.arange(head_dim // 2, device=coordinates.device).tensor_split(len(columns))
    for column, part in zip(columns, pairs, strict=True):
        exponents = (part - part[0]).to(dtype) / len(part)
        angles.append(column.unsqueeze(1) * _BASE**-exponents)
    angle = torch.cat(angles, 1)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of neighbouring features by its angle.

    Args:
        x: Queries or keys, shape (..., T, head_dim).
        table: Cosines and sines, shape (2, T, head_dim / 2).

    Returns:
        Shape and dtype of x; computed in the dtype of the table.
    """
    cos, sin = table
    even, odd = x.to(table.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


def check_rotary(positions: tuple[int, ...], head_dim: int) -> None:
    """Refuse heads that cannot hold a pair of features for every axis.

    Raises:
        ConfigError: If head_dim is odd or too small.
    """
    if head_dim % 2 or head_dim // 2 < len(positions):
        raise ConfigError(
            f"RQTransformer: rotary=True needs an even head width of at least {2 * len(positions)} "
            f"for positions={positions}; got dim / num_heads = {head_dim}. Change either."
        )
