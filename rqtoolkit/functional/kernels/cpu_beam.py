"""Beam search over tables of inner products, compiled by numba for one thread of a CPU.

A few vectors advance together, level by level: each asks for the rows of products that it reads
next, and they arrive while the others have their turn. Prefixes are visited in the order of a walk
through their tree: a sum that two of them share is computed once.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.functional.codebook_products import LANES
from rqtoolkit.functional.kernels.compiled import compiled
from rqtoolkit.functional.kernels.lanes import address, moved, prefetch
from rqtoolkit.functional.kernels.selection import Candidates, fold, keep_smallest

__all__ = ["beam_prefixes"]

Array: TypeAlias = NDArray[Any]
Address: TypeAlias = Any

_AHEAD = 256  # numbers of a row of products that are asked for; then the processor goes on
_PREFIXES_AT_ONCE = 16  # of all vectors that advance together


class _Books(NamedTuple):
    """Addresses of what `CodebookProducts` holds, and the levels to search."""

    offsets: Address
    products: Address
    starts: Address
    sizes: Address
    row_starts: Address
    row_lengths: Address
    depth: int
    stride: int  # columns of the largest level


class _Scratch(NamedTuple):
    """Addresses of what one step of one vector writes; a row is `stride` numbers."""

    sums: Address  # row m: scores of a level's codewords given the first m codes of a prefix
    zeros: Address  # one row
    kept: Address  # indices of the candidates kept, best first
    place: Address  # of each prefix in the walk


class _Beam(NamedTuple):
    """Addresses of one vector's prefixes, by rank, before or after a step."""

    codes: Address  # (width, depth)
    scores: Address
    walk: Address  # ranks in the order of the walk
    shared: Address  # codes in common with the prefix visited before


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
def _row(books: _Books, level: int, code: int, later: int) -> Address:
    """Address of the products of a codeword with those of a later level."""
    begin = books.row_starts[level] + code * books.row_lengths[level]
    return moved(books.products, begin + books.starts[later] - books.starts[level + 1])


@compiled
def _score_candidates(
    books: _Books,
    scratch: _Scratch,
    candidates: Candidates,
    beam: _Beam,
    prefixes: int,
    level: int,
    dots: Address,
) -> None:
    """Score all codewords of a level after each prefix, and find minima of these scores."""
    start, stride = books.starts[level], books.stride
    padded = books.starts[level + 1] - start
    _subtract(scratch.sums, moved(books.offsets, start), moved(dots, start), padded)
    for spot in range(prefixes):
        prefix = beam.walk[spot]
        codes = moved(beam.codes, prefix * books.depth)
        row, sums = scratch.zeros, scratch.sums
        for earlier in range(beam.shared[spot], level):
            sums = moved(scratch.sums, earlier * stride)
            row = _row(books, earlier, codes[earlier], level)
            if earlier < level - 1:
                _add(moved(sums, stride), sums, row, padded)
        scores, folded = moved(candidates.scores, prefix * stride), candidates.folded
        count = _total(scores, folded, sums, row, beam.scores[prefix], padded)
        fold(moved(candidates.minima, prefix * LANES), folded, count)


@compiled
def _extend(
    books: _Books,
    scratch: _Scratch,
    before: _Beam,
    prefixes: int,
    after: _Beam,
    width: int,
    level: int,
) -> None:
    """Write the prefixes kept, and their order in the next walk: that of parents, then rank."""
    size, depth, kept, place = books.sizes[level], books.depth, scratch.kept, scratch.place
    for spot in range(prefixes):
        place[before.walk[spot]] = spot
    for rank in range(width):
        parent = kept[rank] // size
        codes, old_codes = moved(after.codes, rank * depth), moved(before.codes, parent * depth)
        for earlier in range(level):
            codes[earlier] = old_codes[earlier]
        codes[level] = kept[rank] - parent * size
        kept[rank] = place[parent]
        spot = rank
        while spot > 0 and kept[after.walk[spot - 1]] > kept[rank]:
            after.walk[spot] = after.walk[spot - 1]
            spot -= 1
        after.walk[spot] = rank


@compiled
def _prepare(books: _Books, beam: _Beam, prefixes: int, level: int) -> None:
    """Find what prefixes share in the walk at a level, and ask for the rows that it reads."""
    ahead = min(_AHEAD, books.starts[level + 1] - books.starts[level])
    for spot in range(prefixes):
        codes, shared = moved(beam.codes, beam.walk[spot] * books.depth), 0
        if spot > 0:
            last = moved(beam.codes, beam.walk[spot - 1] * books.depth)
            while shared < level - 1 and codes[shared] == last[shared]:
                shared += 1
        beam.shared[spot] = shared
        for earlier in range(shared, level):
            row = _row(books, earlier, codes[earlier], level)
            for i in range(0, ahead, LANES):
                prefetch(moved(row, i))


@compiled
def _beam(floats: Address, integers: Address, which: int, widest: int, depth: int) -> _Beam:
    codes = moved(integers, which * widest * (depth + 2))
    walk = moved(codes, widest * depth)
    return _Beam(codes, moved(floats, which * widest), walk, moved(walk, widest))


@compiled
def _search(
    books: _Books,
    scratch: _Scratch,
    candidates: Candidates,
    floats: Address,
    integers: Address,
    dots: Address,
    rows: int,
    widths: Array,
    out: Array,
) -> None:
    depth, columns, widest = books.depth, books.starts[books.depth], widths.max()
    together = max(1, _PREFIXES_AT_ONCE // widest)
    for first in range(0, rows, together):
        last = min(first + together, rows)
        for row in range(first, last):
            beam = _beam(floats, integers, 2 * (row - first), widest, depth)
            beam.scores[0], beam.walk[0], beam.shared[0] = 0, 0, 0
        prefixes = 1
        for level in range(depth):
            width, size = widths[level], books.sizes[level]
            padded = books.starts[level + 1] - books.starts[level]
            for row in range(first, last):
                place = 2 * (row - first)
                before = _beam(floats, integers, place + level % 2, widest, depth)
                after = _beam(floats, integers, place + 1 - level % 2, widest, depth)
                own = moved(dots, row * columns)
                next_own = moved(dots, min(row + together, rows - 1) * columns)
                for i in range(books.starts[level], books.starts[level + 1], LANES):
                    prefetch(moved(next_own, i))
                _score_candidates(books, scratch, candidates, before, prefixes, level, own)
                keep_smallest(candidates, prefixes, size, padded, width, after.scores, scratch.kept)
                _extend(books, scratch, before, prefixes, after, width, level)
                if level + 1 < depth:
                    _prepare(books, after, width, level + 1)
            prefixes = width
        for row in range(first, last):
            beam = _beam(floats, integers, 2 * (row - first) + depth % 2, widest, depth)
            for rank in range(prefixes):
                for level in range(depth):
                    out[row, rank, level] = beam.codes[rank * depth + level]


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
    beams = 2 * max(1, _PREFIXES_AT_ONCE // widest)
    most = 4 * widest + 2 * LANES  # candidates within the bound, and room to fill a register
    rows_and_minima = (depth + widest + 4) * stride + 2 * widest * LANES
    floats = np.zeros(LANES + rows_and_minima + most + beams * widest, np.float32)
    integers = np.zeros(most + 2 * widest + beams * widest * (depth + 2), np.int64)

    begin = (LANES - floats.ctypes.data // 4 % LANES) % LANES  # of a cache line
    sums = moved(address(floats), begin)
    zeros = moved(sums, depth * stride)
    scores = moved(zeros, stride)
    folded = moved(scores, widest * stride)
    minima = moved(folded, 3 * stride)
    groups = moved(minima, widest * LANES)
    values, indices = moved(sums, rows_and_minima), address(integers)
    kept, place = moved(indices, most), moved(indices, most + widest)
    scratch = _Scratch(sums, zeros, kept, place)
    candidates = Candidates(scores, minima, folded, groups, values, indices, stride)
    books = _Books(
        address(offsets),
        address(products),
        address(starts),
        address(sizes),
        address(row_starts),
        address(row_lengths),
        depth,
        stride,
    )
    _search(
        books,
        scratch,
        candidates,
        moved(values, most),
        moved(indices, most + 2 * widest),
        address(dots),
        len(dots) // starts[depth],
        widths,
        out,
    )
    floats[0], integers[0] = 0, 0  # both are alive until here
