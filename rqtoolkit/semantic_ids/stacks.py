"""Stacks of codes as numbers that sort, and which of them are taken."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["TakenCodes", "place_in_group", "stack_numbers", "stacks_of"]

Codes = NDArray[np.int64]
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


def stack_numbers(codes: Codes, sizes: Sequence[int]) -> NDArray:
    """One sortable value (N,) for each stack of codes (N, d): in 64 bits, or as bytes if longer."""
    if math.prod(int(size) for size in sizes) >= 2**63:
        width = 4 * codes.shape[1]
        return np.ascontiguousarray(codes.astype(">u4")).view(f"S{width}")[:, 0]
    numbers = np.zeros(len(codes), dtype=np.int64)
    for column, size in zip(codes.T, sizes, strict=True):
        numbers = numbers * int(size) + column
    return numbers


def stacks_of(numbers: NDArray, sizes: Sequence[int]) -> Codes:
    """Undo `stack_numbers`."""
    if numbers.dtype.kind == "S":
        wide = np.ascontiguousarray(numbers)[:, None].view(">u4")
        return wide.astype(np.int64)
    columns = np.empty((len(numbers), len(sizes)), dtype=np.int64)
    for level in reversed(range(len(sizes))):
        numbers, columns[:, level] = np.divmod(numbers, int(sizes[level]))
    return columns


def place_in_group(groups: NDArray) -> NDArray[np.int64]:
    """How many before it are of the same group, for each element (N,) of sorted groups."""
    begins = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]][: len(groups)])
    lengths = np.diff(np.r_[begins, len(groups)])
    return np.arange(len(groups)) - np.repeat(begins, lengths)


class TakenCodes:
    """Which last codes are taken after each prefix: sorted, to look up a whole array at once."""

    def __init__(self, taken: Codes, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        order = np.lexsort(taken.T[::-1])
        self.last = taken[order, -1]
        self.prefixes = stack_numbers(taken[order, :-1], sizes[:-1])
        self.stacks = stack_numbers(taken[order], sizes)

    def room(self, prefixes: NDArray) -> NDArray[np.int64]:
        """Free codes after each prefix, by its number."""
        begins, ends = (np.searchsorted(self.prefixes, prefixes, side) for side in _SIDES)
        return self.sizes[-1] - (ends - begins)

    def last_codes(self, prefixes: NDArray) -> list[NDArray[np.int64]]:
        """Taken codes after each prefix, by its number."""
        begins, ends = (np.searchsorted(self.prefixes, prefixes, side) for side in _SIDES)
        return [self.last[b:e] for b, e in zip(begins, ends, strict=True)]
