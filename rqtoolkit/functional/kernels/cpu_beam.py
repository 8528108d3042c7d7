"""Beam search over tables of inner products, compiled by numba for one thread of a CPU.

Vectors are taken one after another, so that all scores of one stay in the first caches. Prefixes
are visited in the order of a walk through their tree: a sum that two prefixes share is computed
once. Rows of products are asked for as soon as it is known that they will be read. The smallest
candidates are found by counting, without branches that a processor cannot foresee: minima of
blocks give a bound that few candidates pass, and each of these is ranked by how many are smaller.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.functional.codebook_products import LANES
from rqtoolkit.functional.kernels.compiled import compiled
from rqtoolkit.functional.kernels.lanes import (
    address,
    at_most,
    below,
    count_bits,
    lowest_bit,
    minimum,
    moved,
    prefetch,
)

__all__ = ["beam_prefixes"]

Array: TypeAlias = NDArray[Any]
Address: TypeAlias = Any

_INFINITY = np.float32(np.inf)
_AHEAD = 256  # numbers of a row of products that are asked for when its codeword is chosen


class _Scratch(NamedTuple):
    """Addresses of what the search of one vector writes; one row is `stride` numbers."""

    sums: Address  # row m: scores of a level's codewords given the first m codes of a prefix
    candidates: Address  # a row per prefix: scores of all that extend it
    minima: Address  # LANES per prefix: minima of the candidates of equal code modulo LANES
    folded: Address  # one row, on the way to minima
    zeros: Address  # one row
    groups: Address  # minima over several prefixes
    values: Address  # scores of the candidates within the bound, and their indices
    indices: Address
    parents: Address  # rank of the prefix that each new one extends
    order: Address  # ranks in the order of the walk
    place: Address  # of each rank in it


@compiled
def _subtract(out: Address, a: Address, b: Address, count: int) -> None:
    for i in range(count):
        out[i] = a[i] - b[i]


@compiled
def _add(out: Address, a: Address, b: Address, count: int) -> None:
    for i in range(count):
        out[i] = a[i] + b[i]


@compiled
def _total(
    out: Address, folded: Address, sums: Address, row: Address, score: Any, count: int
) -> int:
    """Put (sums + row) + score to out, and minima of its two halves to folded; return their number.

    Counts are multiples of LANES; of an odd number of registers, the middle one goes alone.
    """
    low = count // (2 * LANES) * LANES
    high = count - low
    for i in range(low):
        x = (sums[i] + row[i]) + score
        y = (sums[high + i] + row[high + i]) + score
        out[i] = x
        out[high + i] = y
        folded[i] = x if x < y else y
    for i in range(low, high):
        out[i] = (sums[i] + row[i]) + score
        folded[i] = out[i]
    return high


@compiled
def _fold(minima: Address, folded: Address, count: int) -> None:
    """Fold in halves down to one register."""
    while count > LANES:
        low = count // (2 * LANES) * LANES
        count -= low
        for i in range(0, low, LANES):
            minimum(moved(folded, i), moved(folded, i), moved(folded, count + i))
    minimum(minima, folded, folded)


@compiled
def _bound(minima: Address, prefixes: int, width: int, groups: Address) -> Any:
    """Return a number that at least `width` candidates do not exceed, and not many more."""
    count = min(prefixes, (4 * width + LANES - 1) // LANES)
    if count * LANES < width:
        return _INFINITY
    for i in range(0, count * LANES, LANES):
        minimum(moved(groups, i), moved(minima, i), moved(minima, i))
    for prefix in range(count, prefixes):
        group = moved(groups, prefix % count * LANES)
        minimum(group, group, moved(minima, prefix * LANES))
    bound = -_INFINITY
    for i in range(count * LANES):
        lower = 0
        for j in range(0, count * LANES, LANES):
            lower += count_bits(below(moved(groups, j), groups[i]))
        if lower < width and groups[i] > bound:
            bound = groups[i]
    return bound


@compiled
def _rank(
    values: Address, indices: Address, found: int, width: int, scores: Address, kept: Address
) -> None:
    """Put the smallest values, in order, to scores and their indices to kept; ties as they come."""
    for i in range(width):
        scores[i], kept[i] = _INFINITY, 0
    for i in range(found, found + LANES):
        values[i] = _INFINITY
    for i in range(found):
        value, own = values[i], i // LANES * LANES
        before = (1 << (i - own)) - 1
        mine = moved(values, own)
        rank = count_bits(below(mine, value) | (at_most(mine, value) & before))
        for j in range(0, own, LANES):
            rank += count_bits(at_most(moved(values, j), value))
        for j in range(own + LANES, found, LANES):
            rank += count_bits(below(moved(values, j), value))
        if rank < width:
            scores[rank], kept[rank] = value, indices[i]


@compiled
def _keep_smallest(
    scratch: _Scratch,
    prefixes: int,
    size: int,
    padded: int,
    stride: int,
    width: int,
    scores: Address,
    kept: Address,
) -> None:
    """Put the `width` smallest candidates, in order of (score, rank, code), to scores and kept."""
    values, indices = scratch.values, scratch.indices
    bound = _bound(scratch.minima, prefixes, width, scratch.groups)
    found, full = 0, False
    for prefix in range(prefixes):
        if at_most(moved(scratch.minima, prefix * LANES), bound):
            candidates = moved(scratch.candidates, prefix * stride)
            for register in range(0, padded, LANES):
                hits = at_most(moved(candidates, register), bound)
                while hits:
                    code = register + lowest_bit(hits)
                    hits &= hits - 1
                    value = candidates[code]
                    if code < size and (value < bound or not full):
                        values[found], indices[found] = value, prefix * size + code
                        found += 1
                        if found == 4 * width + LANES:  # many ties: go on with the best
                            _rank(values, indices, found, width, scores, kept)
                            for i in range(width):
                                values[i], indices[i] = scores[i], kept[i]
                            found, full, bound = width, True, scores[width - 1]
    _rank(values, indices, found, width, scores, kept)


@compiled
def _order(scratch: _Scratch, prefixes: int, width: int) -> None:
    """Put the new prefixes in the order of the walk: as their parents were, siblings by rank."""
    order, place, parents = scratch.order, scratch.place, scratch.parents
    for spot in range(prefixes):
        place[order[spot]] = spot
    for rank in range(width):
        spot = rank
        while spot > 0 and place[parents[order[spot - 1]]] > place[parents[rank]]:
            order[spot] = order[spot - 1]
            spot -= 1
        order[spot] = rank


@compiled
def _score_prefixes(
    scratch: _Scratch,
    level: int,
    prefixes: int,
    depth: int,
    stride: int,
    codes: Address,
    scores: Address,
    products: Address,
    starts: Array,
    row_starts: Array,
    row_lengths: Array,
) -> None:
    """Score all codewords of a level after each prefix, and put their minima to scratch."""
    padded, previous = starts[level + 1] - starts[level], -1
    for spot in range(prefixes):
        prefix = scratch.order[spot]
        own, shared = moved(codes, prefix * depth), 0
        if previous >= 0:
            other = moved(codes, previous * depth)
            while shared < level - 1 and own[shared] == other[shared]:
                shared += 1
        previous = prefix
        row, sums = scratch.zeros, scratch.sums
        for earlier in range(shared, level):
            sums = moved(scratch.sums, earlier * stride)
            begin = row_starts[earlier] + own[earlier] * row_lengths[earlier]
            row = moved(products, begin + starts[level] - starts[earlier + 1])
            if earlier < level - 1:
                _add(moved(sums, stride), sums, row, padded)
        candidates = moved(scratch.candidates, prefix * stride)
        count = _total(candidates, scratch.folded, sums, row, scores[prefix], padded)
        _fold(moved(scratch.minima, prefix * LANES), scratch.folded, count)


@compiled
def _search(
    dots: Array,
    offsets: Array,
    products: Array,
    starts: Array,
    sizes: Array,
    row_starts: Array,
    row_lengths: Array,
    widths: Array,
    out: Array,
    scratch: _Scratch,
    stride: int,
    codes: Address,
    old_codes: Address,
    scores: Address,
    old_scores: Address,
    kept: Address,
) -> None:
    depth = len(widths)
    columns = starts[depth]
    rows = len(dots) // columns
    for row in range(rows):
        prefixes, old_scores[0], scratch.order[0] = 1, 0, 0
        for level in range(depth):
            start, size, width = starts[level], sizes[level], widths[level]
            padded = starts[level + 1] - start
            for i in range(start, start + padded, LANES):
                prefetch(moved(address(dots), min(row + 1, rows - 1) * columns + i))
            _subtract(
                scratch.sums,
                moved(address(offsets), start),
                moved(address(dots), row * columns + start),
                padded,
            )
            _score_prefixes(
                scratch,
                level,
                prefixes,
                depth,
                stride,
                old_codes,
                old_scores,
                address(products),
                starts,
                row_starts,
                row_lengths,
            )
            _keep_smallest(scratch, prefixes, size, padded, stride, width, scores, kept)
            for rank in range(width):
                parent = kept[rank] // size
                code = kept[rank] - parent * size
                scratch.parents[rank] = parent
                for earlier in range(level):
                    codes[rank * depth + earlier] = old_codes[parent * depth + earlier]
                codes[rank * depth + level] = code
                begin = row_starts[level] + code * row_lengths[level]
                for i in range(0, min(_AHEAD, row_lengths[level]), LANES):
                    prefetch(moved(address(products), begin + i))
            _order(scratch, prefixes, width)
            codes, old_codes = old_codes, codes
            scores, old_scores = old_scores, scores
            prefixes = width
        for rank in range(prefixes):
            for level in range(depth):
                out[row, rank, level] = old_codes[rank * depth + level]


@compiled
def beam_prefixes(
    dots: Array,
    offsets: Array,
    products: Array,
    starts: Array,
    sizes: Array,
    row_starts: Array,
    row_lengths: Array,
    widths: Array,
    out: Array,
) -> None:
    """Do what `torch_beam.beam_prefixes` does.

    Args:
        dots: Inner products of some vectors with the codewords, flat, `starts[depth]` a vector.
        offsets: As in `CodebookProducts`, and so are the next five, as arrays of int64.
        products: Inner products between codewords.
        starts: First column of each level.
        sizes: Codewords of each level.
        row_starts: Where the rows of each level begin in products.
        row_lengths: Columns of these rows.
        widths: Prefixes to keep after each level.
        out: Codes, shape (N, widths[-1], depth), int64; written.
    """
    depth, widest, stride = len(widths), widths.max(), 0
    for level in range(depth):
        stride = max(stride, starts[level + 1] - starts[level])
    found = 4 * widest + 2 * LANES
    floats = np.zeros(
        (depth + widest + 2) * stride + 2 * widest * (LANES + 1) + found + LANES, np.float32
    )
    integers = np.zeros(widest * (2 * depth + 4) + found, np.int64)
    # to the beginning of a cache line
    sums = moved(address(floats), (LANES - floats.ctypes.data // 4 % LANES) % LANES)
    candidates = moved(sums, depth * stride)
    folded = moved(candidates, widest * stride)
    zeros = moved(folded, stride)
    minima = moved(zeros, stride)
    groups = moved(minima, widest * LANES)
    values = moved(groups, widest * LANES)
    scores = moved(values, found)
    codes = address(integers)
    old_codes = moved(codes, widest * depth)
    kept = moved(old_codes, widest * depth)
    parents, order, place = moved(kept, widest), moved(kept, 2 * widest), moved(kept, 3 * widest)
    indices = moved(kept, 4 * widest)
    scratch = _Scratch(
        sums, candidates, minima, folded, zeros, groups, values, indices, parents, order, place
    )
    _search(
        dots,
        offsets,
        products,
        starts,
        sizes,
        row_starts,
        row_lengths,
        widths,
        out,
        scratch,
        stride,
        codes,
        old_codes,
        scores,
        moved(scores, widest),
        kept,
    )
    integers[0], floats[0] = 0, 0  # both were alive until here
