"""The last linear map, from the depth transformer to logits: one for all levels, or one each."""

import torch
from torch import Tensor, nn

__all__ = ["LevelClassifiers", "SharedClassifier"]


class SharedClassifier(nn.Linear):
    """One linear map for all levels; a smaller level takes the first of its rows.

    Args:
        dim: Width of the transformer.
        codebook_sizes: Entries of each level's codebook.
    """

    def __init__(self, dim: int, codebook_sizes: tuple[int, ...]) -> None:
        super().__init__(dim, max(codebook_sizes))
        self.codebook_sizes = codebook_sizes

    def table(self, level: int) -> tuple[Tensor, Tensor]:
        """Return weight (K_level, dim) and bias (K_level,)."""
        size = self.codebook_sizes[level]
        if size == self.out_features:
            return self.weight, self.bias
        return self.weight[:size], self.bias[:size]


class LevelClassifiers(nn.Module):
    """A linear map y = x W_d + b_d of its own for each level d.

    The weight is laid out as in the paper's checkpoints, (depth, dim, K), K the largest size;
    what lies beyond the size of a level takes no part.

    Args:
        dim: Width of the transformer.
        codebook_sizes: Entries of each level's codebook.
    """

    def __init__(self, dim: int, codebook_sizes: tuple[int, ...]) -> None:
        super().__init__()
        depth, widest = len(codebook_sizes), max(codebook_sizes)
        self.weight = nn.Parameter(torch.empty(depth, dim, widest))
        self.bias = nn.Parameter(torch.empty(depth, widest))
        self.codebook_sizes = codebook_sizes

    def table(self, level: int) -> tuple[Tensor, Tensor]:
        """Return weight (K_level, dim) and bias (K_level,)."""
        size = self.codebook_sizes[level]
        return self.weight[level, :, :size].T, self.bias[level, :size]
