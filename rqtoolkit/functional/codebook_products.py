"""What encoding with fixed codebooks needs to know of them, computed once.

With codewords c, the error of a stack of codes (k_0, …, k_m) against x is

    ½‖x − Σ c_i‖² − ½‖x‖² = Σ_i (½‖c_i‖² − ⟨x, c_i⟩) + Σ_{i<j} ⟨c_i, c_j⟩,

so one matrix product of the vectors with all codewords, and a table of the inner products between
codewords of different levels, replace all arithmetic on residuals.

References:
    Babenko & Lempitsky, "Additive Quantization for Extreme Vector Compression", CVPR 2014,
    section 3. https://doi.org/10.1109/CVPR.2014.124
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add, mul

import torch
from torch import Tensor

__all__ = ["LANES", "CodebookProducts", "product_bytes"]

LANES = 16
"""Levels are padded to multiples of this many columns: one AVX-512 register of float32."""

_LARGEST_COORDINATE, _LARGEST_OFFSET = 1e15, 1e35  # codewords are at most 1 in size


def _padded(sizes: Sequence[int]) -> list[int]:
    return [-(-size // LANES) * LANES for size in sizes]


def _row_lengths(sizes: Sequence[int], both_ways: bool) -> list[int]:
    """Columns of the levels after each level; both ways, of all levels but itself."""
    padded = _padded(sizes)
    if both_ways:
        return [sum(padded) - own for own in padded]
    return [sum(padded[level + 1 :]) for level in range(len(sizes))]


def product_bytes(sizes: Sequence[int], *, both_ways: bool = False) -> int:
    """Bytes of the inner products between the codewords of levels of these sizes."""
    lengths = _row_lengths(sizes, both_ways)
    return 4 * sum(size * length for size, length in zip(sizes, lengths, strict=True))


@dataclass(frozen=True)
class CodebookProducts:
    """Codewords of all levels side by side, with their norms and inner products.

    Columns: level after level, each padded to a multiple of `LANES`. The first level is moved to
    mean zero, as vectors are to be, which leaves residuals as they are; all are scaled by one power
    of two to a largest coordinate in [½, 1). So data far from the origin, very large or very small
    neither cancel nor overflow nor vanish.

    Attributes:
        codewords: Shape (columns, dim), float32; padding is 0.
        offsets: ½‖c‖² + ½ penalty of each codeword, shape (columns,); padding is infinite.
        products: Inner products, flat. The row of codeword k of level i holds those with the
            codewords of all later levels from `row_starts[i] + k * row_lengths[i]` on and, both
            ways, those with all earlier ones right before.
        shift: Mean of the first level, shape (dim,).
        scale: Power of two that vectors and codewords are multiplied by.
        sizes: Codewords of each level.
        starts: First column of each level, and the number of columns.
        row_starts: Where the rows of each level begin in `products`.
        row_lengths: Columns of a row of each level.
        both_ways: Whether rows hold earlier levels too: beam search needs none, refinement does.
    """

    codewords: Tensor
    offsets: Tensor
    products: Tensor
    shift: Tensor
    scale: float
    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    row_starts: tuple[int, ...]
    row_lengths: tuple[int, ...]
    both_ways: bool

    @classmethod
    def of(
        cls,
        tables: Sequence[Tensor],
        penalties: Sequence[Tensor] | None = None,
        *,
        both_ways: bool = False,
    ) -> "CodebookProducts":
        """Compute the products of some codebooks.

        Args:
            tables: One (K_d, dim) float32 tensor per level; sizes may differ.
            penalties: Added to the squared error where a codeword is used, one (K_d,) tensor per
                level, in the squared units of the data.
            both_ways: Keep each product twice, in the rows of either codeword.
        """
        sizes = tuple(len(table) for table in tables)
        starts = tuple(accumulate(_padded(sizes), initial=0))
        row_lengths = tuple(_row_lengths(sizes, both_ways))
        *first_rows, end = accumulate(map(mul, sizes, row_lengths), initial=0)
        row_starts = tuple(map(add, first_rows, starts)) if both_ways else tuple(first_rows)
        shift = tables[0].mean(dim=0)
        centered = [tables[0] - shift, *tables[1:]]
        largest = max(float(table.abs().max()) for table in centered)
        scale = 2.0 ** -max(-126, math.frexp(largest)[1]) if largest else 1.0

        codewords = tables[0].new_zeros(starts[-1], tables[0].shape[1])
        offsets = codewords.new_full((starts[-1],), torch.inf)
        for level, (table, start, size) in enumerate(zip(centered, starts, sizes, strict=False)):
            codewords[start : start + size] = table * scale
            half = codewords[start : start + size].square().sum(dim=1) / 2
            if penalties is not None:
                half = half + penalties[level].double() * (scale * scale / 2)
            offsets[start : start + size] = half.clamp(max=_LARGEST_OFFSET)

        made = cls(
            codewords=codewords,
            offsets=offsets,
            products=codewords.new_zeros(end),
            shift=shift,
            scale=scale,
            sizes=sizes,
            starts=starts,
            row_starts=row_starts,
            row_lengths=row_lengths,
            both_ways=both_ways,
        )
        made._multiply()
        return made

    def _multiply(self) -> None:
        for level, size in enumerate(self.sizes[:-1]):
            begin, end = self.starts[level : level + 2]
            after = self.rows_of(level)[1]
            torch.mm(self.codewords[begin : begin + size], self.codewords[end:].T, out=after)
            for later in range(level + 1, len(self.sizes)) if self.both_ways else ():
                first = self.starts[later] - end
                block = after[:, first : first + self.sizes[later]]
                self.rows_of(later)[0][:, begin : begin + size] = block.T

    def rows_of(self, level: int) -> tuple[Tensor, Tensor]:
        """Products of one level's codewords with those of all earlier and all later levels.

        Returns:
            Two views, (K, columns before the level; none unless both ways) and (K, columns after).
        """
        size, length = self.sizes[level], self.row_lengths[level]
        before = self.starts[level] if self.both_ways else 0
        first = self.row_starts[level] - before
        rows = self.products[first : first + size * length].view(size, length)
        return rows[:, :before], rows[:, before:]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (self.codewords, self.offsets, self.products, self.shift)
        return sum(tensor.nbytes for tensor in tensors)

    def normalized(self, x: Tensor) -> Tensor:
        """Return vectors (N, dim) moved as the first level is, and scaled."""
        return (x - self.shift).mul_(self.scale).clamp_(-_LARGEST_COORDINATE, _LARGEST_COORDINATE)
