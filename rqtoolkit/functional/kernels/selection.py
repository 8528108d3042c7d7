"""The smallest of many candidates, without branches that a processor cannot foresee.

Minima of blocks give a bound that few candidates pass; each of these is ranked by how many are
smaller.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rqtoolkit.functional.codebook_products import LANES
from rqtoolkit.functional.kernels.compiled import compiled
from rqtoolkit.functional.kernels.lanes import (
    at_most,
    below,
    count_bits,
    lowest_bit,
    minimum,
    moved,
)

__all__ = ["Candidates", "fold", "keep_smallest"]

Address: TypeAlias = Any

_INFINITY = np.float32(np.inf)


class Candidates(NamedTuple):
    """Addresses of rows of scores, and of what finding the smallest of them writes."""

    scores: Address  # a row of `stride` numbers per prefix
    minima: Address  # LANES per row: minima of the scores of equal place modulo LANES
    folded: Address  # three rows, on the way to minima
    groups: Address  # minima over several rows
    values: Address  # those within the bound, 4 · width + 2 · LANES at most, and their indices
    indices: Address
    stride: int


# What is folded goes on in another place: minima written over one of their operands would become
# masked stores, for which the next step has to wait.


@compiled
def fold(minima: Address, folded: Address, count: int) -> None:
    """Fold in halves down to one register, each time to behind what was folded."""
    while count > LANES:
        low = count // (2 * LANES) * LANES
        high, to = count - low, moved(folded, count)
        for i in range(0, low, LANES):
            minimum(moved(to, i), moved(folded, i), moved(folded, high + i))
        for i in range(low, high, LANES):
            minimum(moved(to, i), moved(folded, i), moved(folded, i))
        folded, count = to, high
    minimum(minima, folded, folded)


@compiled
def _bound(minima: Address, rows: int, width: int, groups: Address, folded: Address) -> Any:
    """Return a number that at least `width` candidates do not exceed, and not many more."""
    count = min(rows, (4 * width + LANES - 1) // LANES)
    if count * LANES < width:
        return _INFINITY
    for first in range(count):
        group, spare = moved(minima, first * LANES), 0
        for row in range(first + count, rows, count):
            to = moved(folded, spare)
            minimum(to, group, moved(minima, row * LANES))
            group, spare = to, LANES - spare
        minimum(moved(groups, first * LANES), group, group)
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
def keep_smallest(
    of: Candidates, rows: int, size: int, padded: int, width: int, scores: Address, kept: Address
) -> None:
    """Put the `width` smallest candidates in order to scores, their indices to kept.

    Equal ones are ordered by row, then place in it; the index is row · size + place.

    Args:
        of: Their scores, and minima of each row.
        rows: How many.
        size: Of a row.
        padded: The same, up to the next multiple of LANES; what is beyond size is infinite.
        width: At most rows · size.
        scores: Written.
        kept: Written.
    """
    values, indices, minima = of.values, of.indices, of.minima
    bound = _bound(minima, rows, width, of.groups, of.folded)
    found, full = 0, False
    for row in range(rows):
        if at_most(moved(minima, row * LANES), bound):
            candidates = moved(of.scores, row * of.stride)
            for register in range(0, padded, LANES):
                hits = at_most(moved(candidates, register), bound)
                while hits:
                    place = register + lowest_bit(hits)
                    hits &= hits - 1
                    value = candidates[place]
                    if place < size and (value < bound or not full):
                        values[found], indices[found] = value, row * size + place
                        found += 1
                        if found == 4 * width + LANES:  # many ties: go on with the best
                            _rank(values, indices, found, width, scores, kept)
                            for i in range(width):
                                values[i], indices[i] = scores[i], kept[i]
                            found, full, bound = width, True, scores[width - 1]
    _rank(values, indices, found, width, scores, kept)
