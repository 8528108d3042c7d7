"""Factorised codes: each level looks for its codewords in a space of few dimensions of its own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqtoolkit.quantizers.levels import Choose, LevelPass, Observe, counted_vectors

__all__ = ["LevelProjections", "linear_float32", "quantize_projected_levels"]


class LevelProjections(nn.Module):
    """A linear map from vectors into the space of the codes and one back, for each level.

    They work in float32, whatever a parent module casts their parameters to.

    Args:
        depth: Levels.
        dim: Vector size.
        codebook_dim: Dimensions of the codewords.

    References:
        Yu et al., "Vector-quantized Image Modeling with Improved VQGAN", ICLR 2022, section 3.2
        (factorised codes). https://arxiv.org/abs/2110.04627
        Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", NeurIPS 2023
        (one pair of projections for each level). https://arxiv.org/abs/2306.06546
    """

    def __init__(self, depth: int, dim: int, codebook_dim: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(dim, codebook_dim) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(codebook_dim, dim) for _ in range(depth))

    def into(self, x: Tensor, level: int) -> Tensor:
        """Project vectors (N, dim) into the space of a level's codes, (N, codebook_dim)."""
        return linear_float32(x, self.down[level])

    def back(self, codewords: Tensor, level: int) -> Tensor:
        """Project codewords (N, codebook_dim) of a level back, (N, dim)."""
        return linear_float32(codewords, self.up[level])


def linear_float32(x: Tensor, layer: nn.Module) -> Tensor:
    """Apply a linear layer in float32, whatever its parameters were cast to."""
    assert isinstance(layer, nn.Linear)
    return F.linear(x, layer.weight.float(), layer.bias.float())


def quantize_projected_levels(
    x: Tensor,
    tables: Sequence[Tensor],
    projections: LevelProjections,
    choose: Choose,
    estimator: Callable[[Tensor, Tensor], Tensor],
    *,
    in_use: Tensor | None = None,
    codebook_loss: bool = False,
    observe: Observe | None = None,
) -> LevelPass:
    """Do what `quantize_levels` does, with codewords looked for in each level's own space.

    A level projects what is left over to z, takes the codeword e for z, and subtracts what e
    projects back to. Commitment and codebook loss are mean squared differences of z and e, each
    held fixed in turn; the gradient of `quantized` reaches x, and the projections, through
    `estimator(z, e)` at each level.

    Args:
        x: Vectors, shape (N, dim), float32.
        tables: One (K_d, codebook_dim) tensor per level.
        projections: Of as many levels or more.
        choose: How codes are chosen, in the space of the codes.
        estimator: Gradient estimator.
        in_use: As for `quantize_levels`.
        codebook_loss: As for `quantize_levels`.
        observe: As for `quantize_levels`.
    """
    left, quantized = x, torch.zeros_like(x)
    codes, errors = [], []
    commitment = alignment = x.new_zeros(())
    for level, table in enumerate(tables):
        share = x.new_ones(1, 1) if in_use is None else in_use[:, level, None]
        z = projections.into(left, level)
        codes.append(choose(z.detach(), table, level))
        if observe is not None:
            observe(level, z.detach(), codes[-1])
        codeword = F.embedding(codes[-1], table)
        commitment = commitment + (share * (z - codeword.detach()).square()).sum()
        if codebook_loss:
            alignment = alignment + (share * (z.detach() - codeword).square()).sum()
        back = projections.back(estimator(z, codeword), level)
        quantized = quantized + share * back
        left = left - back.detach()
        errors.append((share * left.detach().square()).sum())
    vectors = counted_vectors(x, in_use, len(tables))
    scale = vectors.sum().clamp_min(1) * tables[0].shape[1]
    return LevelPass(
        codes=torch.stack(codes, dim=1),
        quantized=quantized,
        commitment_loss=commitment / scale,
        codebook_loss=alignment / scale,
        errors=torch.stack(errors) / vectors.clamp_min(1),
    )
