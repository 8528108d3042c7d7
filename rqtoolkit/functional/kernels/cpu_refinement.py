"""Iterated conditional modes over codes, compiled by numba for one thread of a CPU.

The scores of all codewords given the other levels' codes stay in the first caches. A change of a
code adds the difference of two rows of inner products to them, so that what is paid for is the
number of changes, not that of sweeps.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.functional.kernels.compiled import compiled

__all__ = ["refine"]

Array: TypeAlias = NDArray[Any]

# Indices are made unsigned where a loop is to become vector instructions: signed ones may count
# from the end of an array.


@compiled
def _add(scores: Array, start: int, count: int, products: Array, row: int) -> None:
    s, p = np.uint64(start), np.uint64(row)
    for i in range(np.uint64(count)):
        scores[s + i] += products[p + i]


@compiled
def _exchange(scores: Array, start: int, count: int, products: Array, new: int, old: int) -> None:
    s, p, q = np.uint64(start), np.uint64(new), np.uint64(old)
    for i in range(np.uint64(count)):
        scores[s + i] += products[p + i] - products[q + i]


@compiled
def _best(scores: Array, start: int, size: int, current: int) -> int:
    """Return the first of the lowest scores, or `current` where none is lower than its own."""
    s, bound = np.uint64(start), scores[start + current]
    lower = 0
    for i in range(np.uint64(size)):
        lower += scores[s + i] < bound
    if lower == 0:  # nearly always
        return current
    code = current
    for i in range(size):
        if scores[start + i] < bound:
            bound, code = scores[start + i], i
    return code


@compiled
def _choose(
    scores: Array,
    codes: Array,
    level: int,
    new: int,
    products: Array,
    starts: Array,
    row_starts: Array,
    row_lengths: Array,
) -> float:
    """Set one code, bring all scores up to date, and return the change of half the error."""
    begin, end = starts[level], starts[level + 1]
    change = scores[begin + new] - scores[begin + codes[level]]
    after_new = row_starts[level] + new * row_lengths[level]
    after_old = row_starts[level] + codes[level] * row_lengths[level]
    _exchange(scores, 0, begin, products, after_new - begin, after_old - begin)
    _exchange(scores, end, len(scores) - end, products, after_new, after_old)
    codes[level] = new
    return change


@compiled
def _descend(
    scores: Array,
    codes: Array,
    rounds: int,
    first: int,
    change: float,
    products: Array,
    starts: Array,
    sizes: Array,
    row_starts: Array,
    row_lengths: Array,
) -> float:
    """Give one level after another its best code; add what that changes to `change`."""
    depth = len(codes)
    unchanged = 0
    for step in range(rounds * depth):
        level = (first + step) % depth
        new = _best(scores, starts[level], sizes[level], codes[level])
        if new == codes[level]:
            unchanged += 1
            if unchanged == depth:  # no further sweep finds anything
                break
        else:
            change += _choose(scores, codes, level, new, products, starts, row_starts, row_lengths)
            unchanged = 0
    return change


@compiled
def refine(
    dots: Array,
    offsets: Array,
    products: Array,
    starts: Array,
    sizes: Array,
    row_starts: Array,
    row_lengths: Array,
    draws: Array,
    rounds: int,
    all_codes: Array,
) -> None:
    """Do what `torch_refinement.refine` does with `ProductScores`, in place.

    Args:
        dots: Inner products of some vectors with the codewords, shape (N, columns).
        offsets: As in `CodebookProducts` with rows both ways, and so are the next five, as arrays
            of int64.
        products: Inner products between codewords.
        starts: First column of each level, and the number of columns.
        sizes: Codewords of each level.
        row_starts: Where the columns of later levels begin in the first row of each level.
        row_lengths: Columns of these rows.
        draws: Whole numbers of at least 0, shape (N, perturbations), int64.
        rounds: Sweeps at most.
        all_codes: Codes (N, depth), int64; written.
    """
    depth = all_codes.shape[1]
    columns = starts[depth]
    scores, kept_scores = np.empty(columns, np.float32), np.empty(columns, np.float32)
    kept_codes = np.empty(depth, np.int64)
    layout = (products, starts, sizes, row_starts, row_lengths)
    for row in range(len(all_codes)):
        codes = all_codes[row]
        for i in range(columns):
            scores[i] = offsets[i] - dots[row, i]
        for level in range(depth):
            begin, end = starts[level], starts[level + 1]
            after = row_starts[level] + codes[level] * row_lengths[level]
            _add(scores, 0, begin, products, after - begin)
            _add(scores, end, columns - end, products, after)
        _descend(scores, codes, rounds, 0, np.float32(0), *layout)

        for index in range(draws.shape[1]):
            kept_scores[:] = scores
            kept_codes[:] = codes
            level = depth - 1 - index % depth
            drawn = draws[row, index] % sizes[level]
            change = _choose(scores, codes, level, drawn, products, starts, row_starts, row_lengths)
            change = _descend(scores, codes, max(1, rounds), level + 1, change, *layout)
            if not change < 0:
                scores, kept_scores = kept_scores, scores
                codes[:] = kept_codes
