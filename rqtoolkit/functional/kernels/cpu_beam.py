"""Beam search over tables of inner products, compiled by numba for one thread of a CPU.

Vectors are taken one after another, so that all scores of one stay in the first caches. Prefixes
are visited in the order of a walk through their tree: a sum that two prefixes share is computed
once. Of the candidates, only the minima of blocks are looked at, and then the blocks whose minimum
is among the smallest.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.functional.kernels.compiled import compiled

__all__ = ["beam_prefixes"]

Array: TypeAlias = NDArray[Any]

_BLOCKS = 16  # of each prefix's candidates: block b holds those whose code is b modulo 16


# Indices are made unsigned where a loop is to become vector instructions: signed ones may count
# from the end of an array.


@compiled
def _subtract(
    out: Array, out_start: int, a: Array, a_start: int, b: Array, b_start: int, count: int
) -> None:
    o, p, q = np.uint64(out_start), np.uint64(a_start), np.uint64(b_start)
    for i in range(np.uint64(count)):
        out[o + i] = a[p + i] - b[q + i]


@compiled
def _add(
    out: Array, out_start: int, a: Array, a_start: int, b: Array, b_start: int, count: int
) -> None:
    o, p, q = np.uint64(out_start), np.uint64(a_start), np.uint64(b_start)
    for i in range(np.uint64(count)):
        out[o + i] = a[p + i] + b[q + i]


@compiled
def _add_scalar(out: Array, out_start: int, scalar: float, count: int) -> None:
    o = np.uint64(out_start)
    for i in range(np.uint64(count)):
        out[o + i] += scalar


@compiled
def _minimum(
    out: Array, out_start: int, a: Array, a_start: int, b: Array, b_start: int, count: int
) -> None:
    o, p, q = np.uint64(out_start), np.uint64(a_start), np.uint64(b_start)
    for i in range(np.uint64(count)):
        x, y = a[p + i], b[q + i]
        out[o + i] = x if x < y else y


@compiled
def _block_minima(
    minima: Array, minima_start: int, values: Array, start: int, count: int, folded: Array
) -> None:
    """Fold `count` values, a multiple of 16, in halves down to the minima of 16 blocks."""
    rows = count // _BLOCKS
    half = (rows + 1) // 2 * _BLOCKS
    _minimum(folded, 0, values, start, values, start + count - half, half)
    while half > _BLOCKS:
        rows = half // _BLOCKS
        smaller = (rows + 1) // 2 * _BLOCKS
        _minimum(folded, 0, folded, 0, folded, half - smaller, smaller)
        half = smaller
    for block in range(_BLOCKS):
        minima[minima_start + block] = folded[block]


@compiled
def _smallest_bound(minima: Array, count: int, width: int, smallest: Array) -> float:
    """Return the width-th smallest of the minima: no candidate above it is kept."""
    smallest[:width] = np.inf
    for i in range(count):
        value = minima[i]
        if value < smallest[width - 1]:
            place = width - 1
            while place > 0 and value < smallest[place - 1]:
                smallest[place] = smallest[place - 1]
                place -= 1
            smallest[place] = value
    return smallest[width - 1]


@compiled
def _keep_smallest(
    candidates: Array,
    stride: int,
    size: int,
    minima: Array,
    prefixes: int,
    width: int,
    kept: Array,
    scores: Array,
) -> None:
    """Put the `width` smallest candidates in order of (value, index) to kept and scores."""
    bound = _smallest_bound(minima, prefixes * _BLOCKS, width, scores)
    scores[:width] = np.inf
    kept[:width] = 0
    found = 0
    for prefix in range(prefixes):
        for block in range(_BLOCKS):
            if minima[prefix * _BLOCKS + block] <= bound:
                for code in range(block, size, _BLOCKS):
                    value = candidates[prefix * stride + code]
                    if value <= bound:
                        index = prefix * size + code
                        place = found
                        while place > 0 and (
                            value < scores[place - 1]
                            or (value == scores[place - 1] and index < kept[place - 1])
                        ):
                            if place < width:
                                scores[place] = scores[place - 1]
                                kept[place] = kept[place - 1]
                            place -= 1
                        if place < width:
                            scores[place] = value
                            kept[place] = index
                        found = min(found + 1, width)


@compiled
def _walk_order(order: Array, parents: Array, width: int, place: Array) -> None:
    """Reorder prefixes as their parents were visited: children of one parent together."""
    for rank in range(width):
        spot = rank
        while spot > 0 and place[parents[order[spot - 1]]] > place[parents[rank]]:
            order[spot] = order[spot - 1]
            spot -= 1
        order[spot] = rank


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
        out: Codes (N, prefixes, depth), int64; written.
    """
    depth = len(widths)
    columns = starts[depth]
    widest = max(1, widths.max())
    stride = 0
    for level in range(depth):
        stride = max(stride, starts[level + 1] - starts[level])
    sums = np.empty(depth * stride, np.float32)
    candidates = np.empty(widest * stride, np.float32)
    folded = np.empty(stride, np.float32)
    minima = np.empty(widest * _BLOCKS, np.float32)
    scores, old_scores = np.empty(widest, np.float32), np.empty(widest, np.float32)
    codes, old_codes = np.empty((widest, depth), np.int64), np.empty((widest, depth), np.int64)
    kept, parents = np.empty(widest, np.int64), np.empty(widest, np.int64)
    order, place = np.empty(widest, np.int64), np.empty(widest, np.int64)

    for row in range(len(dots) // columns):
        prefixes = 1
        old_scores[0] = 0
        order[0] = 0
        for level in range(depth):
            start, size, width = starts[level], sizes[level], widths[level]
            padded = starts[level + 1] - start
            _subtract(sums, 0, offsets, start, dots, row * columns + start, padded)
            previous = -1
            for spot in range(prefixes):
                prefix = order[spot]
                shared = 0
                if previous >= 0:
                    while (
                        shared < level - 1
                        and old_codes[prefix, shared] == old_codes[previous, shared]
                    ):
                        shared += 1
                previous = prefix
                for earlier in range(shared, level):
                    piece = (
                        row_starts[earlier]
                        + old_codes[prefix, earlier] * row_lengths[earlier]
                        + (start - starts[earlier + 1])
                    )
                    if earlier == level - 1:
                        _add(
                            candidates,
                            prefix * stride,
                            sums,
                            earlier * stride,
                            products,
                            piece,
                            padded,
                        )
                    else:
                        _add(
                            sums,
                            (earlier + 1) * stride,
                            sums,
                            earlier * stride,
                            products,
                            piece,
                            padded,
                        )
                if level == 0:
                    candidates[:padded] = sums[:padded]
                _add_scalar(candidates, prefix * stride, old_scores[prefix], padded)
                _block_minima(minima, prefix * _BLOCKS, candidates, prefix * stride, padded, folded)
            _keep_smallest(candidates, stride, size, minima, prefixes, width, kept, scores)
            for rank in range(width):
                parents[rank] = kept[rank] // size
                for earlier in range(level):
                    codes[rank, earlier] = old_codes[parents[rank], earlier]
                codes[rank, level] = kept[rank] % size
            for spot in range(prefixes):
                place[order[spot]] = spot
            _walk_order(order, parents, width, place)
            codes, old_codes = old_codes, codes
            scores, old_scores = old_scores, scores
            prefixes = width
        for rank in range(prefixes):
            for level in range(depth):
                out[row, rank, level] = old_codes[rank, level]
