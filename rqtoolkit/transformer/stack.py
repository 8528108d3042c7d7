"""A stack of pre-LayerNorm transformer blocks; body and depth transformer are one each."""

from collections.abc import Sequence

from torch import Tensor, nn

from rqtoolkit.transformer.attention import CausalSelfAttention, KeyValueCache

__all__ = ["Block", "Stack"]


class Block(nn.Module):
    """Attention, then a perceptron four times as wide, each on a normalised residual branch.

    Args:
        dim: Width.
        num_heads: Attention heads; divides dim.
        dropout: Rate at the end of both branches.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=1e-5)
        self.attention = CausalSelfAttention(dim, num_heads, dropout)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Map x, shape (B, T, dim), to the same shape."""
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.mlp(self.mlp_norm(x))


class Stack(nn.Module):
    """Causal transformer without embeddings and, as in the paper, without a final LayerNorm.

    Args:
        dim: Width.
        layers: Number of blocks.
        num_heads: Attention heads per block; divides dim.
        dropout: Residual dropout.
    """

    def __init__(self, dim: int, layers: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, num_heads, dropout) for _ in range(layers))

    def forward(self, x: Tensor, caches: Sequence[KeyValueCache] | None = None) -> Tensor:
        """Run all blocks.

        Args:
            x: Inputs, shape (B, T, dim).
            caches: One cache per block, from `make_caches`; x then continues what they hold.

        Returns:
            Outputs, shape (B, T, dim).
        """
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i])
        return x

    def make_caches(self, capacity: int) -> list[KeyValueCache]:
        """Return an empty cache per block for at most `capacity` positions."""
        return [KeyValueCache(capacity) for _ in self.blocks]
