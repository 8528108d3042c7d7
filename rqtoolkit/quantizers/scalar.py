"""Residual finite scalar quantization: a few dimensions rounded to a few values, level by level."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count, shown
from rqtoolkit.quantizers.grids import GridPass, GridQuantizer

__all__ = ["ResidualScalarQuantizer"]


class ResidualScalarQuantizer(GridQuantizer):
    """Round each of a few bounded dimensions to a few values, and what is left over again, finer.

    There is no codebook to learn, to start or to collapse, and no loss to add: vectors are brought
    within the grid by c · tanh(z / c), c = L / (L − 1) for L values, and rounded; gradients pass
    the rounding unchanged. Everything is float32, also inside a half-precision parent.

    The values are −1 to 1 in even steps for even and odd L, where the paper shifts the grid of even
    L by half a step: so L^d values in all fit together over d levels.

    Args:
        dim: Vector size; a linear map leads to `len(levels)` dimensions and one back where it is
            another.
        depth: Number of residual levels.
        levels: Values of each dimension, at least 2. A level of depth has their product as
            codebook size; a code counts up in the first dimension.
        depth_dropout: Chance, in training mode, that a sample (an index of the first axis) uses
            only the first 1, 2, … or depth levels, all equally likely.
        channels_first: Inputs are (B, dim, ...) in place of (..., dim). Codes stay depth-last.

    Raises:
        ConfigError: If an argument is out of its range.

    Example:
        >>> quantizer = ResidualScalarQuantizer(dim=8, depth=2, levels=(8, 5, 5, 5))
        >>> out = quantizer(torch.randn(4, 10, 8))
        >>> out.codes.shape, quantizer.codebook_sizes
        (torch.Size([4, 10, 2]), (1000, 1000))

    References:
        Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", ICLR 2024.
        https://arxiv.org/abs/2309.15505
        Parker et al., "Scaling Transformers for Low-Bitrate High-Quality Speech Coding", 2024,
        section 3.2 (symmetric grids). https://arxiv.org/abs/2411.19842
    """

    arguments = ("dim", "depth", "levels", "depth_dropout", "channels_first")

    def __init__(
        self,
        dim: int,
        depth: int,
        levels: Sequence[int] = (8, 5, 5, 5),
        *,
        depth_dropout: float = 0.0,
        channels_first: bool = False,
    ) -> None:
        super().__init__(
            dim,
            depth,
            _checked(levels),
            most_significant_first=False,
            depth_dropout=depth_dropout,
            channels_first=channels_first,
        )
        self.levels = [int(level) for level in levels]

    def _bounded(self, z: Tensor) -> Tensor:
        # A cell's half beyond the outermost values: all cells are of one width.
        edge = self.radices / (self.radices - 1)
        return edge * torch.tanh(z / edge)

    def _unit(self) -> float:
        return 1.0

    def _losses(
        self,
        z: Tensor,
        done: GridPass,  # noqa: ARG002
        in_use: Tensor | None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None]:
        return z.new_zeros(()), None


def _checked(levels: Sequence[int]) -> list[int]:
    """Return the values of each dimension, or refuse what has none."""
    where = "ResidualScalarQuantizer"
    if isinstance(levels, str) or not isinstance(levels, Sequence) or not levels:
        raise ConfigError(
            f"{where}: levels={shown(levels)} has to be a sequence of whole numbers, one for each "
            "dimension of the codes. Pass for example (8, 5, 5, 5)."
        )
    counts = [check_count(where, "levels", level) for level in levels]
    if min(counts) < 2:
        raise ConfigError(f"{where}: levels={shown(levels)} have to be at least 2 each.")
    return counts
