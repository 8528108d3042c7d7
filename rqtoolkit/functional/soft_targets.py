"""Soft targets kept as residuals: their probabilities are computed again wherever they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rqtoolkit.functional.assign import (
    DEFAULT_MAX_BYTES,
    chunk_slices,
    nearest_codes,
    soft_assignment,
)

__all__ = ["SoftTargets", "soft_targets"]


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """The distributions Q(k | r_d) = softmax(−‖r_d − e_k‖² / tau), as what they follow from.

    A residual has the width of the latents, a distribution that of the codebook: 256 numbers
    against 16,384 in the paper's models.

    Attributes:
        residuals: What was left before each level, shape (..., depth, code_dim), float32.
        tables: Codewords of each level, (K_d, code_dim), on the device of the residuals.
        tau: Temperature in the units of a squared distance, above 0.

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022,
        section 3.2.3. https://arxiv.org/abs/2203.01941
    """

    residuals: Tensor
    tables: Sequence[Tensor]
    tau: float

    def __getitem__(self, index: Tensor | slice | int) -> SoftTargets:
        """Select along the leading axes, as indexing the residuals does."""
        return replace(self, residuals=self.residuals[index])

    def flatten(self, start: int, end: int) -> SoftTargets:
        """Flatten leading axes, as `Tensor.flatten` of the residuals does."""
        return replace(self, residuals=self.residuals.flatten(start, end))

    def level(self, level: int) -> Callable[[slice], Tensor]:
        """Return a function from a slice of rows (n) to one level's probabilities (n, K_level).

        The residuals must be flat, (N, depth, code_dim). Distances are float32, also under
        autocast.
        """
        residuals, table = self.residuals[:, level], self.tables[level]

        def probabilities(rows: slice) -> Tensor:
            with torch.autocast(residuals.device.type, enabled=False):
                return soft_assignment(residuals[rows], table, self.tau)

        return probabilities

    def probabilities(self) -> Tensor:
        """Return all distributions at once, (..., depth, K), 0 beyond the size of a level."""
        depth, code_dim = self.residuals.shape[-2:]
        flat = replace(self, residuals=self.residuals.reshape(-1, depth, code_dim))
        widest = max(len(table) for table in self.tables)
        out = flat.residuals.new_zeros(len(flat.residuals), depth, widest)
        for level, table in enumerate(self.tables):
            out[:, level, : len(table)] = flat.level(level)(slice(None))
        return out.view(*self.residuals.shape[:-1], widest)


def soft_targets(
    x: Tensor,
    tables: Sequence[Tensor],
    tau: float,
    *,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> tuple[Tensor, SoftTargets]:
    """Codes of each level, with the soft assignment each was taken from, in bounded memory.

    Distributions exist for a chunk of vectors at a time. Codes are drawn level after level, by one
    `torch.multinomial` for each chunk: as in the paper's code while all vectors fit into one. With
    more, the same generator gives other codes.

    Args:
        x: Vectors, shape (N, dim), float32.
        tables: One (K_d, dim) tensor per level.
        tau: Temperature in the units of a squared distance, above 0.
        stochastic: Draw each code from its distribution, in place of taking the nearest.
        generator: Source of the draws, on the device of x.
        max_bytes: Bound on the distributions held at once; a few tensors of that size exist at a
            time.

    Returns:
        Codes (N, depth), int64, and the soft targets, residuals (N, depth, dim).
    """
    codes = x.new_empty(len(x), len(tables), dtype=torch.int64)
    residuals = x.new_empty(len(x), len(tables), x.shape[1])
    targets = SoftTargets(residuals, tuple(tables), tau)
    residual = x
    for level, table in enumerate(tables):
        residuals[:, level] = residual
        if stochastic:
            probabilities = targets.level(level)
            for rows in chunk_slices(len(x), len(table) * x.element_size(), max_bytes):
                drawn = torch.multinomial(probabilities(rows), 1, generator=generator)
                codes[rows, level] = drawn.squeeze(1)
        else:
            codes[:, level] = nearest_codes(residual, table, max_bytes=max_bytes)
        residual = residual - table[codes[:, level]]
    return codes, targets
