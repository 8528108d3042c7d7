"""Beam search over tables of inner products, compiled by Triton: one program a vector and level.

All arithmetic on floats is additions in the order of `torch_beam`, so that there is nothing for a
compiler to fuse or to round differently: results are equal.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rqtoolkit.functional.codebook_products import CodebookProducts

__all__ = ["LARGEST_BLOCK", "beam_prefixes", "block_size"]

LARGEST_BLOCK = 2**15
"""Candidates of one vector at one level that a program may hold."""

_CANDIDATES_PER_WARP = 1024


def block_size(sizes: Sequence[int], widths: Sequence[int]) -> int:
    """Return the candidates of a vector at the largest level, prefixes and codes padded."""
    before = [1, *widths[:-1]]
    padded = (
        triton.next_power_of_2(width) * triton.next_power_of_2(size)
        for width, size in zip(before, sizes, strict=False)
    )
    return max(padded, default=1)


def beam_prefixes(dots: Tensor, products: CodebookProducts, widths: Sequence[int]) -> Tensor:
    """Do what `torch_beam.beam_prefixes` does, where `block_size` is at most `LARGEST_BLOCK`."""
    rows = len(dots)
    dots = dots.contiguous()
    codes = torch.empty(rows, 1, 0, dtype=torch.int64, device=dots.device)
    scores = dots.new_zeros(rows, 1)
    for level, width in enumerate(widths):
        begin, size = products.starts[level], products.sizes[level]
        ends = products.starts[1 : level + 1]
        row_starts = products.row_starts[:level]
        firsts = [row + begin - end for row, end in zip(row_starts, ends, strict=True)]
        layout = torch.tensor([firsts, products.row_lengths[:level]], device=dots.device)
        extended = codes.new_empty(rows, width, level + 1)
        extended_scores = scores.new_empty(rows, width)
        prefixes = codes.shape[1]
        block_prefixes, block_codes = map(triton.next_power_of_2, (prefixes, size))
        warps = block_prefixes * block_codes // _CANDIDATES_PER_WARP
        if rows:
            _extend[(rows,)](
                dots,
                products.offsets,
                products.products,
                layout.long(),
                codes,
                scores,
                extended,
                extended_scores,
                dots.shape[1],
                begin,
                size,
                prefixes,
                width,
                LEVEL=level,
                PREFIXES=block_prefixes,
                CODES=block_codes,
                num_warps=min(16, max(1, warps)),
                enable_fp_fusion=False,
            )
        codes, scores = extended, extended_scores
    return codes


@triton.jit
def _extend(  # type: ignore[no-untyped-def]
    dots,
    offsets,
    products,
    layout,
    codes,
    scores,
    extended,
    extended_scores,
    columns,
    begin,
    size,
    prefixes,
    width,
    LEVEL: tl.constexpr,
    PREFIXES: tl.constexpr,
    CODES: tl.constexpr,
):
    """Extend the prefixes of one vector by one level and keep the best, equal ones by index."""
    row = tl.program_id(0).to(tl.int64)
    prefix = tl.arange(0, PREFIXES)
    code = tl.arange(0, CODES)
    is_prefix = prefix < prefixes
    is_code = code < size
    is_candidate = is_prefix[:, None] & is_code[None, :]

    offset = tl.load(offsets + begin + code, mask=is_code, other=0.0)
    gain = offset - tl.load(dots + row * columns + begin + code, mask=is_code, other=0.0)
    gains = tl.broadcast_to(gain[None, :], (PREFIXES, CODES))
    for earlier in tl.static_range(LEVEL):
        at = codes + (row * prefixes + prefix) * LEVEL + earlier
        chosen = tl.load(at, mask=is_prefix, other=0)
        first = tl.load(layout + earlier) + chosen * tl.load(layout + LEVEL + earlier)
        place = products + first[:, None] + code[None, :]
        gains += tl.load(place, mask=is_candidate, other=0.0)
    score = tl.load(scores + row * prefixes + prefix, mask=is_prefix, other=0.0)
    candidates = gains + score[:, None]

    # As in `assign.smallest_first`: bits that order as the floats do, with the index below them.
    bits = tl.where(candidates == 0, 0.0, candidates).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    index = prefix[:, None] * size + code[None, :]
    keys = (bits.to(tl.int64) << 32) | index.to(tl.int64)
    used = 0x7FFFFFFFFFFFFFFF
    keys = tl.where(is_candidate, keys, used)
    for rank in range(width):
        best = tl.min(tl.min(keys, axis=1), axis=0)
        keys = tl.where(keys == best, used, keys)
        kept = best & 0xFFFFFFFF
        ordered = (best >> 32).to(tl.int32)
        kept_bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
        out = row * width + rank
        tl.store(extended_scores + out, kept_bits.to(tl.float32, bitcast=True))
        parent = row * prefixes + kept // size
        for earlier in tl.static_range(LEVEL):
            inherited = tl.load(codes + parent * LEVEL + earlier)
            tl.store(extended + out * (LEVEL + 1) + earlier, inherited)
        tl.store(extended + out * (LEVEL + 1) + LEVEL, kept % size)
