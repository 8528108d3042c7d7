"""Codes as transformer inputs: codewords, summed over depth, projected, with their positions."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqtoolkit.errors import ShapeError

__all__ = ["CodeEmbedding"]


class CodeEmbedding(nn.Module):
    """Inputs of body and depth transformer from codes.

    Args:
        num_positions: Positions of the longest sequence.
        codebook_sizes: Entries of each level's codebook.
        dim: Width of the transformers.
        codebooks: Frozen codewords, shape (depth or 1, K, code_dim), K the largest size; copied,
            and kept in float32 whatever the module is cast to. None learns a table of width dim.

    Raises:
        ShapeError: If codebooks do not fit codebook_sizes.
    """

    codebooks: Tensor | None
    embeddings: nn.Parameter | None
    body_projection: nn.Linear | None
    depth_projection: nn.Linear | None

    def __init__(
        self,
        num_positions: int,
        codebook_sizes: tuple[int, ...],
        dim: int,
        codebooks: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.depth = len(codebook_sizes)
        self.positions = nn.Parameter(torch.empty(num_positions, dim))
        self.levels = nn.Parameter(torch.empty(self.depth, dim))
        entries = max(codebook_sizes)
        if codebooks is None:
            self.embeddings = nn.Parameter(torch.empty(self.depth, entries, dim))
            self.register_buffer("codebooks", None)
            self.body_projection = self.depth_projection = None
            return
        if codebooks.ndim != 3 or codebooks.shape[:2] not in {(self.depth, entries), (1, entries)}:
            raise ShapeError(
                f"RQTransformer: codebooks must have shape ({self.depth} or 1, {entries}, dim) "
                f"for depth={self.depth} and codebook_size={entries}; "
                f"got shape {tuple(codebooks.shape)}. Pass the sizes of the quantizer."
            )
        self.register_parameter("embeddings", None)
        self.register_buffer("codebooks", codebooks.detach().to(torch.float32, copy=True))
        self.body_projection = nn.Linear(codebooks.shape[2], dim)
        self.depth_projection = nn.Linear(codebooks.shape[2], dim)

    def codewords(self, codes: Tensor, *, level: int = 0) -> Tensor:
        """Look up codewords.

        Args:
            codes: Codes of consecutive levels, shape (..., d), int64.
            level: Level of the first of them.

        Returns:
            Codewords, shape (..., d, code_dim).
        """
        table = self.embeddings if self.codebooks is None else self.codebooks
        assert table is not None
        if table.shape[0] > 1:
            levels = torch.arange(level, level + codes.shape[-1], device=codes.device)
            codes = codes + levels * table.shape[1]
        return F.embedding(codes, table.flatten(0, 1))

    def body_inputs(self, codes: Tensor, *, start: int = 0) -> Tensor:
        """Embed finished positions `start`, `start` + 1, …: codes (B, t, depth) to (B, t, dim)."""
        words = self.codewords(codes).sum(-2)
        if self.body_projection is not None:
            # The paper projects each codeword, then sums: the bias counts depth times.
            weight, bias = self.body_projection.weight, self.body_projection.bias
            words = F.linear(words.to(weight.dtype), weight, self.depth * bias)
        return words + self.positions[start : start + codes.shape[1]]

    def depth_inputs(self, partial_sums: Tensor) -> Tensor:
        """Project sums of the codewords so far, (..., code_dim) to (..., dim), without level."""
        if self.depth_projection is None:
            return partial_sums
        return self.depth_projection(partial_sums.to(self.depth_projection.weight.dtype))

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        """Move and cast as any module, but keep the frozen codewords in float32."""
        before = self.codebooks
        super()._apply(fn, recurse)
        if (
            before is not None
            and self.codebooks is not None
            and self.codebooks.dtype != before.dtype
        ):
            self.codebooks = before.to(self.codebooks.device)
        return self
