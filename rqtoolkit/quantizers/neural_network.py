"""One level of a neural residual quantizer: codewords that depend on the levels before."""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Context", "ImplicitCodebook"]

_SMALLEST = 1e-12
_LARGEST_EXPONENT = 8.0  # of the gain: e^8 either way


class Context(NamedTuple):
    """What a partial sum says to all codewords of the next level.

    Attributes:
        gain: Factor of each coordinate, shape (N, dim), above 0.
        features: Added to the features of each codeword, shape (N, width).
    """

    gain: Tensor
    features: Tensor


class ImplicitCodebook(nn.Module):
    """Codewords of one level as functions of a base table and of the sum of the levels before.

    With base codeword e_k and partial sum s, the codeword is

        c_k(s) = g(s) · (e_k + V relu(z)),    z = blocks(U e_k + h(s))

    where g > 0, one factor a coordinate, and h are read from one residual network of s, and each
    block adds W₂ relu(W₁ z) to z. The gain g is this library's addition: how much is left over, and
    in which coordinates, is well told by what is there already (four fifths of the variance of the
    log energy in photo patches), while the networks of the papers learn it slowly. Whatever depends
    on one of e_k and s alone is computed once for all values of the other; only the blocks and V
    cost arithmetic for every candidate. V and log g start at zero: a new level is its table.

    Args:
        table: Base codewords, shape (K, dim), float32.
        width: Size of the features z.
        blocks: Residual blocks that every candidate passes.
        generator: Source of the initial weights, on the CPU.

    References:
        Huijben et al., "Residual Quantization with Implicit Neural Codebooks", ICML 2024.
        https://arxiv.org/abs/2401.14732
        Vallaeys et al., "Qinco2: Vector Compression and Search with Improved Implicit Neural
        Codebooks", ICLR 2025 (pre-selection, beam). https://arxiv.org/abs/2501.03078
    """

    scale: Tensor

    def __init__(
        self, table: Tensor, *, width: int, blocks: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        dim = table.shape[1]
        # Tables have entries of size 1, so that one learning rate suits tables and networks.
        self.register_buffer("scale", table.square().mean().sqrt().clamp_min(_SMALLEST))
        self.table = nn.Parameter(table / self.scale)
        self.preselection = nn.Parameter(table / self.scale)
        self.read = nn.Linear(dim, width)
        self.mix = _block(width)
        self.gain = nn.Linear(width, dim)
        self.describe = nn.Linear(width, width)
        self.embed = nn.Linear(dim, width, bias=False)
        self.blocks = nn.ModuleList(_block(width) for _ in range(blocks))
        self.out = nn.Linear(width, dim, bias=False)
        self._reset(generator)

    def context(self, partial_sums: Tensor) -> Context:
        """Read partial sums (N, dim)."""
        hidden = self.read(partial_sums)
        hidden = F.relu(hidden + self.mix(F.relu(hidden)))
        exponent = self.gain(hidden).float().clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        return Context(self.scale * exponent.exp(), self.describe(hidden))

    def codewords(self, context: Context, codes: Tensor) -> Tensor:
        """Return the codewords (N, A, dim) of codes (N, A), each row in its own context."""
        z = self.embed(self.table)[codes] + context.features[:, None]
        for block in self.blocks:
            z = z + block(z)
        return (self.table[codes] + self.out(F.relu(z))) * context.gain[:, None]

    def shortlist(self, residuals: Tensor, context: Context, candidates: int) -> Tensor:
        """Return the codes (N, candidates) that a fixed table times the gain brings nearest.

        Args:
            residuals: What is left after the levels before, shape (N, dim).
            context: Of the same partial sums.
            candidates: Codes kept; all of them, in order, where there are no more.
        """
        table = self.preselection
        if candidates >= len(table):
            return torch.arange(len(table), device=table.device).expand(len(residuals), -1)
        # Half of ‖r − g t‖² − ‖r‖², two products for all entries.
        products = (context.gain * residuals) @ table.T
        scores = torch.addmm(products, context.gain.square(), table.square().T, beta=-1, alpha=0.5)
        return scores.topk(candidates, dim=1, largest=False, sorted=False).indices

    @torch.no_grad()
    def _reset(self, generator: torch.Generator) -> None:
        """Draw weights that keep variance, with zeros where an output begins."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                weight = torch.randn(layer.weight.shape, generator=generator)
                layer.weight.copy_(weight / sqrt(layer.in_features))
                if layer.bias is not None:
                    layer.bias.zero_()
        for layer in (self.gain, self.out):
            layer.weight.zero_()


def _block(width: int) -> nn.Sequential:
    """Return the residual branch of a block."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
