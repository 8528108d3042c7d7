"""Causal self-attention and the preallocated cache that makes one step cost one position."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqtoolkit.transformer.rotary import rotate

__all__ = ["CausalSelfAttention", "KeyValueCache"]

# CUDA's fused kernels fail on more rows (https://github.com/pytorch/pytorch/issues/142228), and the
# depth transformer has a row for every position of every sequence.
_MOST_ROWS = 65_535


class KeyValueCache:
    """Keys and values of the positions seen so far, in buffers allocated once.

    Growing a cache by concatenation copies it at every step; here a step writes one position and
    attention reads a view. The buffers take shape, dtype and device from the first keys, so that
    a cache follows autocast and reduced precision. The fill level is a Python integer: reading it
    never waits for the device.

    Args:
        capacity: Positions to hold at most.

    Attributes:
        length: Positions held.
        modulation: What a block with adaptive norms made of the condition, which does not change
            while a cache lives; None before the first step.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.modulation: tuple[Tensor, ...] | None = None
        self._buffers: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions and return all positions up to and with them.

        Args:
            keys: New keys, shape (B, heads, T, head_dim).
            values: New values, same shape.

        Returns:
            Views of all keys and values so far, shape (B, heads, length, head_dim).
        """
        if self._buffers is None:
            batch, heads, _, head_dim = keys.shape
            shape = (batch, heads, self.capacity, head_dim)
            self._buffers = keys.new_empty(shape), values.new_empty(shape)
        start, self.length = self.length, self.length + keys.shape[2]
        assert self.length <= self.capacity, "more positions than the cache was made for"
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, start : self.length] = new
        all_keys, all_values = self._buffers
        return all_keys[:, :, : self.length], all_values[:, :, : self.length]

    def reset(self) -> None:
        """Forget all positions; the buffers and the modulation stay."""
        self.length = 0

    def take(self, rows: Tensor) -> Self:
        """Return a cache of its own for some rows, as often as they are named, as beams need it.

        Args:
            rows: Row numbers, shape (B',), int64.
        """
        other = type(self)(self.capacity)
        other.length = self.length
        if self._buffers is not None:
            keys, values = self._buffers
            other._buffers = keys[rows], values[rows]
        if self.modulation is not None:
            other.modulation = tuple(part[rows] for part in self.modulation)
        return other


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what comes before it.

    Args:
        dim: Width of the input and output.
        num_heads: Heads; divides dim.
        dropout: Rate applied to the output projection (not to the attention weights).
        qk_norm: Normalise the queries and keys of each head (a LayerNorm without bias), which
            bounds the attention logits.

    References:
        Henry et al., "Query-Key Normalization for Transformers", Findings of EMNLP 2020,
        https://arxiv.org/abs/2010.04245; with LayerNorm as in Dehghani et al., "Scaling Vision
        Transformers to 22 Billion Parameters", ICML 2023, https://arxiv.org/abs/2302.05442.
    """

    def __init__(
        self, dim: int, num_heads: int, dropout: float = 0.0, *, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_norm = self.key_norm = None
        if qk_norm:
            self.query_norm = nn.LayerNorm(dim // num_heads, bias=False)
            self.key_norm = nn.LayerNorm(dim // num_heads, bias=False)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, cache: KeyValueCache | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        """Attend over the positions of x and, with a cache, over those it holds.

        Args:
            x: Inputs, shape (B, T, dim).
            cache: Earlier positions. Either it is empty or T is 1, so that no mask but the causal
                one is ever needed.
            rotation: Rotary table of the positions of x, shape (2, T, head_dim / 2).

        Returns:
            Outputs, shape (B, T, dim).
        """
        batch, length, dim = x.shape
        heads = self.query_key_value(x).view(batch, length, 3, self.num_heads, -1)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4).unbind(0)
        if self.query_norm is not None and self.key_norm is not None:
            # Autocast may leave a norm in float32.
            queries = self.query_norm(queries).to(values.dtype)
            keys = self.key_norm(keys).to(values.dtype)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        if cache is not None:
            assert length == 1 or cache.length == 0, "fill the cache once, then step by step"
            keys, values = cache.append(keys, values)
        # One query at the end may see everything; is_causal would align it with the first key.
        rows = (x.split(_MOST_ROWS) for x in (queries, keys, values))
        parts = [
            F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
            for q, k, v in zip(*rows, strict=True)
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.dropout(self.output(out.transpose(1, 2).reshape(batch, length, dim)))
