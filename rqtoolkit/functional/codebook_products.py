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

import torch
from torch import Tensor

__all__ = ["LANES", "CodebookProducts", "product_bytes"]

LANES = 16
"""Levels are padded to multiples of this many columns: one AVX-512 register of float32."""

_LARGEST_COORDINATE, _LARGEST_OFFSET = 1e15, 1e35  # codewords are at most 1 in size


def _padded(sizes: Sequence[int]) -> list[int]:
    return [-(-size // LANES) * LANES for size in sizes]


def _row_lengths(sizes: Sequence[int]) -> list[int]:
    """Columns of the levels after each level."""
    padded = _padded(sizes)
    return [sum(padded[level + 1 :]) for level in range(len(sizes))]


def product_bytes(sizes: Sequence[int]) -> int:
    """Bytes of the inner products between the codewords of levels of these sizes."""
    return 4 * sum(size * length for size, length in zip(sizes, _row_lengths(sizes), strict=True))


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
            codewords of all later levels, and begins at `row_starts[i] + k * row_lengths[i]`.
        shift: Mean of the first level, shape (dim,).
        scale: Power of two that vectors and codewords are multiplied by.
        sizes: Codewords of each level.
        starts: First column of each level, and the number of columns.
        row_starts: Where the rows of each level begin in `products`.
        row_lengths: Columns of a row of each level.
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

    @classmethod
    def of(
        cls, tables: Sequence[Tensor], penalties: Sequence[Tensor] | None = None
    ) -> "CodebookProducts":
        """Compute the products of some codebooks.

        Args:
            tables: One (K_d, dim) float32 tensor per level; sizes may differ.
            penalties: Added to the squared error where a codeword is used, one (K_d,) tensor per
                level, in the squared units of the data.
        """
        sizes = tuple(len(table) for table in tables)
        starts = tuple(accumulate(_padded(sizes), initial=0))
        row_lengths = tuple(_row_lengths(sizes))
        row_starts = (0, *accumulate(n * size for n, size in zip(row_lengths, sizes, strict=True)))
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

        products = codewords.new_empty(row_starts[-1])
        for level, size in enumerate(sizes[:-1]):
            rows = products[row_starts[level] : row_starts[level + 1]].view(size, -1)
            own = codewords[starts[level] : starts[level] + size]
            torch.mm(own, codewords[starts[level + 1] :].T, out=rows)
        return cls(
            codewords=codewords,
            offsets=offsets,
            products=products,
            shift=shift,
            scale=scale,
            sizes=sizes,
            starts=starts,
            row_starts=row_starts[:-1],
            row_lengths=row_lengths,
        )

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (self.codewords, self.offsets, self.products, self.shift)
        return sum(tensor.nbytes for tensor in tensors)

    def normalized(self, x: Tensor) -> Tensor:
        """Return vectors (N, dim) moved as the first level is, and scaled."""
        return (x - self.shift).mul_(self.scale).clamp_(-_LARGEST_COORDINATE, _LARGEST_COORDINATE)
