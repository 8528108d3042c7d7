"""One pass through the levels: codes, what was left before each, and the two losses."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rqtoolkit.functional.assign import nearest_codes

__all__ = ["LevelPass", "quantize_levels"]


@dataclass(frozen=True)
class LevelPass:
    """What a greedy pass of N vectors through all levels gives.

    Attributes:
        codes: Shape (N, depth), int64.
        residuals: What was left before each level, (N, dim) each, without gradient.
        quantized: Sum of the chosen codewords, shape (N, dim).
        commitment_loss: Mean over levels and elements of (x − detached partial sum)².
        codebook_loss: Mean over levels and elements of (detached residual − codeword)²; its
            gradient goes to the tables. 0 unless asked for.
    """

    codes: Tensor
    residuals: list[Tensor]
    quantized: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor


def quantize_levels(x: Tensor, tables: list[Tensor], *, codebook_loss: bool = False) -> LevelPass:
    """Quantize what is left over, level after level.

    Args:
        x: Vectors, shape (N, dim), float32; the commitment loss has a gradient to them.
        tables: One (K_d, dim) tensor per level.
        codebook_loss: Also compute the loss that moves the tables.
    """
    residual, partial_sum = x.detach(), torch.zeros_like(x)
    residuals, codes = [], []
    commitment = alignment = x.new_zeros(())
    for table in tables:
        residuals.append(residual)
        codes.append(nearest_codes(residual, table.detach()))
        codeword = F.embedding(codes[-1], table)
        if codebook_loss:
            alignment = alignment + _mean_square(residual - codeword)
        codeword = codeword.detach()
        partial_sum = partial_sum + codeword
        commitment = commitment + _mean_square(x - partial_sum)
        residual = residual - codeword
    return LevelPass(
        codes=torch.stack(codes, dim=1),
        residuals=residuals,
        quantized=partial_sum,
        commitment_loss=commitment / len(tables),
        codebook_loss=alignment / len(tables),
    )


def _mean_square(x: Tensor) -> Tensor:
    return x.square().sum() / max(x.numel(), 1)
