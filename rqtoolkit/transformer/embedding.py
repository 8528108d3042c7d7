"""Codes as transformer inputs: codewords, summed over depth, projected, with their positions."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError, ShapeError

__all__ = ["CodeEmbedding"]


class CodeEmbedding(nn.Module):
    """Inputs of body and depth transformer from codes.

    Args:
        num_positions: Positions of the longest sequence.
        codebook_sizes: Entries of each level's codebook.
        dim: Width of the transformers.
        codebooks: Frozen codewords, shape (depth or 1, K, code_dim), K the largest size; copied,
            and kept in float32 whatever the module is cast to. None learns tables of width dim.
        shared: One learned table for all levels in place of one each; only without codebooks.
        partial_sums: The depth transformer reads the sum of the codewords so far; False, the last
            codeword alone.

    Raises:
        ShapeError: If codebooks do not fit codebook_sizes.
        ConfigError: If a shared table is asked for beside codebooks or for sizes that differ.
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
        *,
        shared: bool = False,
        partial_sums: bool = True,
    ) -> None:
        super().__init__()
        if shared and (codebooks is not None or len(set(codebook_sizes)) > 1):
            fact = f"codebook_size={list(codebook_sizes)}" if codebooks is None else "codebooks"
            raise ConfigError(
                "RQTransformer: shared_embeddings=True is one learned table for levels of one "
                f"size; got {fact}. Leave it False."
            )
        self.depth = len(codebook_sizes)
        self.partial_sums = partial_sums
        self.positions = nn.Parameter(torch.empty(num_positions, dim))
        self.levels = nn.Parameter(torch.empty(self.depth, dim))
        entries = max(codebook_sizes)
        if codebooks is None:
            self.embeddings = nn.Parameter(torch.empty(1 if shared else self.depth, entries, dim))
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

    def depth_inputs(self, codes: Tensor) -> Tensor:
        """Embed codes of the first levels: (N, d) to inputs (N, d, dim) of levels 1 to d."""
        words = self.codewords(codes)
        return self._project_depth(words.cumsum(-2) if self.partial_sums else words)

    def next_depth_input(
        self, codes: Tensor, level: int, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embed the codes (N,) of one level given what this gave for the level before.

        Returns:
            The input (N, 1, dim) of the next level, and what to pass as `before` there.
        """
        words = self.codewords(codes.unsqueeze(-1), level=level)
        if self.partial_sums and before is not None:
            words = before + words
        return self._project_depth(words), words

    def _project_depth(self, words: Tensor) -> Tensor:
        """Project codewords or their sums, (..., code_dim) to (..., dim), without level."""
        if self.depth_projection is None:
            return words
        return self.depth_projection(words.to(self.depth_projection.weight.dtype))

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
