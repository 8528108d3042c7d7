"""One pass through the levels: codes, what was left before each, and the two losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rqtoolkit.functional.assign import draw_codes, nearest_codes
from rqtoolkit.functional.gradient import with_gradient

__all__ = [
    "Choose",
    "LevelPass",
    "Observe",
    "choose_codes",
    "counted_vectors",
    "given_codes",
    "quantize_levels",
]

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""Called as choose(residual, table, level), shapes (N, dim) and (K, dim); returns codes (N,)."""

Observe = Callable[[int, Tensor, Tensor], None]
"""Called as observe(level, inputs, codes), shapes (N, dim of the table) and (N,)."""


@dataclass
class LevelPass:
    """What a pass of N vectors through all levels gives.

    Attributes:
        codes: Shape (N, depth), int64.
        quantized: Sum of the chosen codewords over the levels in use, shape (N, dim).
        commitment_loss: Mean over levels in use and elements of (x − detached partial sum)².
        codebook_loss: Mean over levels in use and elements of (detached residual − codeword)²; its
            gradient goes to the tables. 0 unless asked for.
        errors: Squared error after each level, summed over dim, averaged over the vectors that
            use it, shape (depth,).
        dead: How many entries of each table the step found dead, shape (T,); None where nothing
            was learnt, or nothing dies.
    """

    codes: Tensor
    quantized: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    errors: Tensor
    dead: Tensor | None = None


def choose_codes(
    *, similarity: str = "euclidean", tau: float = 0.0, generator: torch.Generator | None = None
) -> Choose:
    """Return the rule by which a level chooses its codes.

    Args:
        similarity: "euclidean" for the nearest codeword, "cosine" for that of the nearest
            direction.
        tau: Temperature of drawing codes in place of that, in units of the table's mean squared
            norm; 0 draws none.
        generator: Source of the draws.
    """

    def choose(residual: Tensor, table: Tensor, level: int) -> Tensor:  # noqa: ARG001
        table = table.detach()
        if similarity == "cosine":
            residual, table = F.normalize(residual, dim=1), F.normalize(table, dim=1)
        if tau == 0:
            return nearest_codes(residual, table)
        unit = table.square().sum(dim=1).mean().clamp_min(torch.finfo(table.dtype).tiny)
        return draw_codes(residual, table, tau * unit, generator)

    return choose


def given_codes(codes: Tensor) -> Choose:
    """Return the rule that takes codes (N, depth) chosen before."""

    def choose(residual: Tensor, table: Tensor, level: int) -> Tensor:  # noqa: ARG001
        return codes[:, level]

    return choose


def quantize_levels(
    x: Tensor,
    tables: Sequence[Tensor],
    choose: Choose,
    *,
    in_use: Tensor | None = None,
    codebook_loss: bool = False,
    observe: Observe | None = None,
) -> LevelPass:
    """Quantize what is left over, level after level.

    Args:
        x: Vectors, shape (N, dim), float32; the commitment loss has a gradient to them.
        tables: One (K_d, dim) tensor per level.
        choose: How codes are chosen.
        in_use: Which levels count for which vectors, shape (N, depth), 0 or 1; all when None.
            Every level is computed for every vector, whatever counts.
        codebook_loss: Also compute the loss that moves the tables.
        observe: Told what each level quantized, (N, dim), without gradient, and its codes.
    """
    residual, quantized = x.detach(), torch.zeros_like(x)
    pull = torch.zeros_like(quantized)  # what is left over, summed over levels
    codes, errors = [], []
    alignment = x.new_zeros(())
    for level, table in enumerate(tables):
        share = None if in_use is None else in_use[:, level, None]
        codes.append(choose(residual, table, level))
        if observe is not None:
            observe(level, residual, codes[-1])
        codeword = F.embedding(codes[-1], table)
        if codebook_loss:
            alignment = alignment + _counted((residual - codeword).square(), share).sum()
        codeword = codeword.detach()
        quantized += _counted(codeword, share)
        residual = residual - codeword if level == 0 else residual.sub_(codeword)  # x stays
        del codeword
        left = _counted(residual, share)
        pull += left
        errors.append(torch.dot(left.flatten(), residual.flatten()))
    vectors = counted_vectors(x, in_use, len(tables))
    scale = vectors.sum().clamp_min(1) * x.shape[1]
    error = torch.stack(errors)
    commitment = error.sum() / scale
    if x.requires_grad:
        commitment = with_gradient(commitment, x, pull.mul_(2 / scale))
    return LevelPass(
        codes=torch.stack(codes, dim=1),
        quantized=quantized,
        commitment_loss=commitment,
        codebook_loss=alignment / scale,
        errors=error / vectors.clamp_min(1),
    )


def counted_vectors(x: Tensor, in_use: Tensor | None, depth: int) -> Tensor:
    """Return how many vectors use each level, shape (depth,), float32."""
    return x.new_full((depth,), x.shape[0]) if in_use is None else in_use.sum(dim=0)


def _counted(values: Tensor, share: Tensor | None) -> Tensor:
    return values if share is None else values * share
