"""A stack of pre-LayerNorm transformer blocks; body and depth transformer are one each."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rqtoolkit.transformer.attention import CausalSelfAttention, KeyValueCache

__all__ = ["Block", "GatedLinear", "Modulation", "Stack"]


class GatedLinear(nn.Module):
    """SiLU(x W + a) · (x V + b): the wide half of a SwiGLU perceptron.

    Args:
        dim: Width of the input.
        hidden: Width of the output.

    References:
        Shazeer, "GLU Variants Improve Transformer", 2020. https://arxiv.org/abs/2002.05202
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_value = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, shape (..., dim), to (..., hidden)."""
        gate, value = self.gate_value(x).chunk(2, -1)
        return F.silu(gate) * value


class Modulation(nn.Module):
    """Shift, scale and gate of both branches of a block, from a condition (adaLN-Zero).

    The linear map starts at zero: a gate of 0 makes every block the identity at first.

    Args:
        dim: Width of condition and block.

    References:
        Peebles & Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, section 3.2,
        https://arxiv.org/abs/2212.09748; in an autoregressive model of images, Yu et al.,
        "Randomized Autoregressive Visual Generation", 2024, https://arxiv.org/abs/2411.00776.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        """Map conditions (B, dim) to shift, scale and gate of two branches, (B, 1, dim) each."""
        return self.linear(F.silu(cond)).unsqueeze(1).chunk(6, -1)


class Block(nn.Module):
    """Attention, then a perceptron, each on a normalised residual branch.

    Args:
        dim: Width.
        num_heads: Attention heads; divides dim.
        dropout: Rate at the end of both branches.
        qk_norm: Normalise queries and keys, see `CausalSelfAttention`.
        swiglu: Perceptron with a gated hidden layer of width 8/3 dim (rounded to a multiple of 8),
            about as many weights as the GELU one of width 4 dim.
        adaln: Norms shifted, scaled and gated by a condition, see `Modulation`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout: float = 0.0,
        *,
        qk_norm: bool = False,
        swiglu: bool = False,
        adaln: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=1e-5, elementwise_affine=not adaln)
        self.attention = CausalSelfAttention(dim, num_heads, dropout, qk_norm=qk_norm)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-5, elementwise_affine=not adaln)
        if swiglu:
            hidden = 8 * max(1, round(dim / 3))
            layers = [GatedLinear(dim, hidden), nn.Linear(hidden, dim)]
        else:
            layers = [nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)]
        self.mlp = nn.Sequential(*layers, nn.Dropout(dropout))
        self.modulation = Modulation(dim) if adaln else None

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None = None,
        rotation: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> Tensor:
        """Map x, shape (B, T, dim), to the same shape; the rest is described in `Stack.forward`."""
        parts = self._modulate(cond, cache, len(x))
        x = _residual(
            x, self.attention_norm, lambda y: self.attention(y, cache, rotation), parts[:3]
        )
        return _residual(x, self.mlp_norm, self.mlp, parts[3:])

    def _modulate(
        self, cond: Tensor | None, cache: KeyValueCache | None, rows: int
    ) -> tuple[Tensor, ...]:
        if self.modulation is None:
            return ()
        if cache is not None and cache.modulation is not None:
            return cache.modulation
        assert cond is not None, "a block with adaptive norms needs a condition"
        parts = self.modulation(cond)
        if len(cond) < rows:
            parts = tuple(part.repeat_interleave(rows // len(cond), 0) for part in parts)
        if cache is not None:
            cache.modulation = parts
        return parts


def _residual(
    x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor], modulation: tuple[Tensor, ...]
) -> Tensor:
    if not modulation:
        return x + branch(norm(x))
    shift, scale, gate = modulation
    return x + gate * branch(norm(x) * (1 + scale) + shift)


class Stack(nn.Module):
    """Causal transformer without embeddings and, as in the paper, without a final LayerNorm.

    Args:
        dim: Width.
        layers: Number of blocks.
        num_heads: Attention heads per block; divides dim.
        dropout: Residual dropout.
        qk_norm: As for `Block`.
        swiglu: As for `Block`.
        adaln: As for `Block`.

    Attributes:
        checkpointing: Forget what is inside a block after the forward pass and compute it again
            for the backward pass (gradient checkpointing): less memory for a third more time.
    """

    def __init__(
        self,
        dim: int,
        layers: int,
        num_heads: int,
        dropout: float = 0.0,
        *,
        qk_norm: bool = False,
        swiglu: bool = False,
        adaln: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = False
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, dropout, qk_norm=qk_norm, swiglu=swiglu, adaln=adaln)
            for _ in range(layers)
        )

    def forward(
        self,
        x: Tensor,
        caches: Sequence[KeyValueCache] | None = None,
        *,
        rotation: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> Tensor:
        """Run all blocks.

        Args:
            x: Inputs, shape (B, T, dim).
            caches: One cache per block, from `make_caches`; x then continues what they hold.
            rotation: Rotary table from the first position on, cached ones included, shape
                (2, at least T, head_dim / 2); None does not rotate.
            cond: Conditions of adaptive norms, shape (B', dim), each for B / B' rows of x in turn;
                caches remember them from the first call.

        Returns:
            Outputs, shape (B, T, dim).
        """
        if rotation is not None:
            start = caches[0].length if caches else 0
            rotation = rotation[:, start : start + x.shape[1]]
        for i, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, None, rotation, cond, use_reentrant=False)
            else:
                x = block(x, None if caches is None else caches[i], rotation, cond)
        return x

    def make_caches(self, capacity: int) -> list[KeyValueCache]:
        """Return an empty cache per block for at most `capacity` positions."""
        return [KeyValueCache(capacity) for _ in self.blocks]
