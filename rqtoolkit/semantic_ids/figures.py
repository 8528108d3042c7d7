"""Figures of codes alone: how often each is used, and how many items share one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ShapeError
from rqtoolkit.functional.rate_distortion import code_counts, entropy_of_counts

__all__ = [
    "BucketRange",
    "LevelFigures",
    "PrefixFigures",
    "duplicate_rate",
    "gini",
    "level_figures",
    "prefix_figures",
    "prefix_groups",
    "shared_rate",
]


@dataclass(frozen=True)
class LevelFigures:
    """How evenly items are spread over the codes of one level.

    Attributes:
        codebook_size: Codes there are.
        used: Codes that at least one item has.
        dead: Codes that no item has.
        perplexity: Two to the entropy: how many codes, used equally, would tell as much.
        gini: Inequality of the items per code, over all codes: 0 is even, 1 is all in one.
        counts: Items of each code, shape (codebook_size,).
    """

    codebook_size: int
    used: int
    dead: int
    perplexity: float
    gini: float
    counts: NDArray[np.int64] = field(repr=False, compare=False)


@dataclass(frozen=True)
class BucketRange:
    """How many prefixes have between `smallest` and `largest` items, and the items in all of them.

    Attributes:
        smallest: Least number of items.
        largest: Greatest number of items.
        buckets: Prefixes with so many items.
        items: Items of these prefixes together.
    """

    smallest: int
    largest: int
    buckets: int
    items: int


@dataclass(frozen=True)
class PrefixFigures:
    """What the first codes of the IDs tell apart; the bucket of a prefix is the items that have it.

    Attributes:
        length: Codes looked at, counted from the first.
        distinct: Different prefixes.
        duplicate_rate: 1 − distinct / items.
        shared_rate: Share of items whose prefix another item has as well.
        largest: Items of the fullest bucket.
        gini: Inequality of the buckets that hold items: 0 is even.
        buckets: Histogram of bucket sizes 1, 2, 3–4, 5–8, …, empty ranges left out.
    """

    length: int
    distinct: int
    duplicate_rate: float
    shared_rate: float
    largest: int
    gini: float
    buckets: tuple[BucketRange, ...]


def prefix_groups(codes: ArrayLike) -> tuple[NDArray[np.int64], ...]:
    """Number the prefixes of every length: items with equal first codes get equal numbers.

    Args:
        codes: Codes, shape (N, length), integers.

    Returns:
        For each prefix length an array (N,), int64, in [0, number of distinct prefixes).
    """
    table = np.asarray(codes)
    if table.ndim != 2 or 0 in table.shape:
        raise ShapeError(
            f"prefix_groups: codes has to have shape (N, length) with neither 0; got {table.shape}."
        )
    groups = []
    group = np.zeros(len(table), np.int64)
    for level in range(table.shape[1]):
        _, column = np.unique(table[:, level], return_inverse=True)
        _, group = np.unique(group * (column.max() + 1) + column, return_inverse=True)
        groups.append(group)
    return tuple(groups)


def duplicate_rate(sizes: NDArray[np.int64]) -> float:
    """Return 1 − buckets / items for bucket sizes (G,): the items too many for one a bucket."""
    return 1 - len(sizes) / int(sizes.sum())


def shared_rate(sizes: NDArray[np.int64]) -> float:
    """Return the share of items that have company in their bucket, for bucket sizes (G,)."""
    return float(sizes[sizes > 1].sum() / sizes.sum())


def gini(sizes: NDArray[np.int64]) -> float:
    """Return the Gini coefficient of sizes (G,): 0 where all are equal, near 1 where one has all.

    It is half the mean difference of two sizes over the mean size.
    """
    ascending = np.sort(sizes).astype(np.float64)
    count, total = len(ascending), ascending.sum()
    ranks = np.arange(1, count + 1)
    return max(0.0, float((2 * ranks - count - 1) @ ascending / (count * total)))


def level_figures(codes: ArrayLike, codebook_sizes: Sequence[int]) -> tuple[LevelFigures, ...]:
    """Return the use of the codes of every level.

    Args:
        codes: Codes, shape (N, length), integers.
        codebook_sizes: One number a level.

    Raises:
        ShapeError: If the shapes do not fit each other, or there is no item.
        DataError: If codes are no integers or leave [0, codebook_size).
    """
    figures = []
    for counts in code_counts(codes, codebook_sizes):
        used = int((counts > 0).sum())
        figures.append(
            LevelFigures(
                codebook_size=len(counts),
                used=used,
                dead=len(counts) - used,
                perplexity=2.0 ** entropy_of_counts(counts),
                gini=gini(counts),
                counts=counts,
            )
        )
    return tuple(figures)


def prefix_figures(groups: Sequence[NDArray[np.int64]]) -> tuple[PrefixFigures, ...]:
    """Return the buckets of every prefix length.

    Args:
        groups: Numbers of the prefixes, as `prefix_groups` returns them.
    """
    figures = []
    for length, group in enumerate(groups, start=1):
        sizes = np.bincount(group)
        figures.append(
            PrefixFigures(
                length=length,
                distinct=len(sizes),
                duplicate_rate=duplicate_rate(sizes),
                shared_rate=shared_rate(sizes),
                largest=int(sizes.max()),
                gini=gini(sizes),
                buckets=_histogram(sizes),
            )
        )
    return tuple(figures)


def _histogram(sizes: NDArray[np.int64]) -> tuple[BucketRange, ...]:
    """Count buckets in ranges that double: 1, 2, 3–4, 5–8, …"""
    ranges = np.ceil(np.log2(sizes)).astype(np.int64)
    found = []
    for power in np.unique(ranges).tolist():
        inside = sizes[ranges == power]
        smallest = 2 ** (power - 1) + 1 if power else 1
        found.append(BucketRange(smallest, 2**power, len(inside), int(inside.sum())))
    return tuple(found)
