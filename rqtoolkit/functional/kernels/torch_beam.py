"""Beam search over tables of inner products, in plain torch: what compiled kernels must equal."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rqtoolkit.functional.assign import smallest_first
from rqtoolkit.functional.codebook_products import CodebookProducts

__all__ = ["beam_prefixes"]


def beam_prefixes(dots: Tensor, products: CodebookProducts, widths: Sequence[int]) -> Tensor:
    """Search stacks of codes level by level, keeping the best prefixes.

    A prefix (k_0, …, k_m) is scored ((o_m − ⟨x, c_m⟩) + ⟨c_0, c_m⟩ + … + ⟨c_{m−1}, c_m⟩) more than
    the prefix that it extends, added in this order; o are the offsets of `products`.

    Args:
        dots: Inner products of the vectors with the codewords, (N, columns of the first levels).
        products: Of the codebooks.
        widths: Prefixes to keep after each level, at most as many as there are.

    Returns:
        Codes, shape (N, widths[-1], len(widths)), int64, best first; of equal ones that which
        extends the better prefix, then the lower code.
    """
    rows = len(dots)
    codes = torch.empty(rows, 1, 0, dtype=torch.int64, device=dots.device)
    scores = dots.new_zeros(rows, 1)
    for level, width in enumerate(widths):
        begin, size = products.starts[level], products.sizes[level]
        columns = slice(begin, begin + size)
        gains = (products.offsets[columns] - dots[:, columns])[:, None]
        for earlier in range(level):
            length, row_start = products.row_lengths[earlier], products.row_starts[earlier]
            table = products.products[row_start:].narrow(0, 0, products.sizes[earlier] * length)
            after = begin - products.starts[earlier + 1]
            table = table.view(-1, length)[:, after : after + size]
            gains = gains + table[codes[:, :, earlier]]
        candidates = (gains + scores[..., None]).flatten(1)
        kept = smallest_first(candidates, width)
        parents, chosen = kept // size, kept % size
        codes = codes.gather(1, parents[..., None].expand(-1, -1, level))
        codes = torch.cat([codes, chosen[..., None]], dim=2)
        scores = candidates.gather(1, kept)
    return codes
