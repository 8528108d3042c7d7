"""Semantic IDs as categorical features of ranking models: their prefixes and runs as numbers.

A ranking model keeps a table of embeddings for such numbers and adds up those of an item. Items
that share a prefix share its embedding, so that new and rare items start from what is known of
their like.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.semantic_ids.code_checks import check_codes

__all__ = ["ngram_sizes", "ngrams", "prefix_ngrams"]

_LARGEST = 2**63  # numbers are int64


def prefix_ngrams(
    codes: ArrayLike,
    codebook_sizes: Sequence[int],
    n: int | None = None,
    *,
    table_size: int | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Number the prefixes of length 1 to n of each semantic ID.

    Column l holds the prefix c_0, …, c_l as one number in mixed radix, (c_0 K_1 + c_1) K_2 + …:
    equal for equal prefixes and no others. With `table_size`, columns with more possible prefixes
    than that are hashed into it, and only they. `ngram_sizes` tells the rows of each table.

    Args:
        codes: Shape (N, length), integers in [0, codebook_size).
        codebook_sizes: Entries of each level.
        n: Longest prefix; None takes all of the semantic ID.
        table_size: Most rows that a column's table may have; None: never hash.
        seed: Of the hash. The numbers depend on nothing else: store it with the model.

    Returns:
        Shape (N, n), int64, each column in [0, rows of its table).

    Raises:
        ShapeError: If codes are not (N, length).
        DataError: If codes are no integers or out of range.
        ConfigError: If n is out of [1, length], table_size below 1, or an exact number would
            not fit 63 bits.

    References:
        Zheng et al., "Enhancing Embedding Representation Stability in Recommendation Systems with
        Semantic ID", RecSys 2025, https://arxiv.org/abs/2504.02137 (prefix n-grams).
    """
    codes = check_codes("prefix_ngrams", codes, codebook_sizes).astype(np.int64)
    sizes = _whole(codebook_sizes)
    return _number(codes, sizes, _prefixes(sizes, n), table_size, seed)


def ngrams(
    codes: ArrayLike,
    codebook_sizes: Sequence[int],
    n: int,
    *,
    overlapping: bool = False,
    table_size: int | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Number the runs of n successive codes of each semantic ID, whatever precedes them.

    Args:
        codes: Shape (N, length), integers in [0, codebook_size).
        codebook_sizes: Entries of each level.
        n: Codes in a run: 1 gives the codes themselves.
        overlapping: Whether a run starts at every level; else each follows the last, and the end
            is one shorter run where n does not divide length.
        table_size: As for `prefix_ngrams`.
        seed: As for `prefix_ngrams`.

    Returns:
        Shape (N, runs), int64, each column in [0, rows of its table).

    Raises:
        ShapeError: If codes are not (N, length).
        DataError: If codes are no integers or out of range.
        ConfigError: As for `prefix_ngrams`.

    References:
        Singh et al., "Better Generalization with Semantic IDs: A Case Study in Ranking for
        Recommendations", RecSys 2024, https://arxiv.org/abs/2306.08121 (N-grams of the codes).
    """
    codes = check_codes("ngrams", codes, codebook_sizes).astype(np.int64)
    sizes = _whole(codebook_sizes)
    return _number(codes, sizes, _runs(sizes, n, overlapping), table_size, seed)


def ngram_sizes(
    codebook_sizes: Sequence[int],
    n: int | None = None,
    *,
    runs: bool = False,
    overlapping: bool = False,
    table_size: int | None = None,
) -> tuple[int, ...]:
    """Return the rows that the table of each column needs.

    Args:
        codebook_sizes: Entries of each level.
        n: As for `prefix_ngrams` or `ngrams`.
        runs: Whether of `ngrams` in place of `prefix_ngrams`.
        overlapping: As for `ngrams`.
        table_size: As for `prefix_ngrams`.

    Raises:
        ConfigError: As for `prefix_ngrams`.
    """
    sizes = _whole(codebook_sizes)
    count = len(sizes) if n is None else n
    spans = _runs(sizes, count, overlapping) if runs else _prefixes(sizes, count)
    return tuple(_rows(sizes, span, table_size) for span in spans)


def _whole(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return sizes as Python's numbers, whose products do not overflow as those of numpy do."""
    return tuple(map(int, sizes))


def _prefixes(sizes: Sequence[int], n: int | None) -> list[slice]:
    return [slice(0, end) for end in range(1, _check_n(sizes, n) + 1)]


def _runs(sizes: Sequence[int], n: int, overlapping: bool) -> list[slice]:
    length, n = len(sizes), _check_n(sizes, n)
    if overlapping:
        return [slice(start, start + n) for start in range(length - n + 1)]
    return [slice(*bounds) for bounds in pairwise([*range(0, length, n), length])]


def _rows(sizes: Sequence[int], span: slice, table_size: int | None) -> int:
    possible = math.prod(sizes[span])
    if table_size is not None:
        return min(possible, check_count("ngrams", "table_size", table_size))
    if possible > _LARGEST:
        raise ConfigError(
            f"ngrams: {span.stop - span.start} codes of sizes {sizes[span]} have {possible} "
            "values, more than 63 bits hold. Pass table_size, or a smaller n."
        )
    return possible


def _number(
    codes: NDArray[np.int64],
    sizes: Sequence[int],
    spans: Sequence[slice],
    table_size: int | None,
    seed: int,
) -> NDArray[np.int64]:
    """Return the number of each span of codes (N, length), shape (N, spans)."""
    numbers = np.empty((len(codes), len(spans)), np.int64)
    for column, span in enumerate(spans):
        rows = _rows(sizes, span, table_size)
        if rows == math.prod(sizes[span]):
            number = np.zeros(len(codes), np.int64)
            for level in range(span.start, span.stop):
                number = number * sizes[level] + codes[:, level]
            numbers[:, column] = number
        else:
            numbers[:, column] = _hash(codes[:, span], column, seed) % np.uint64(rows)
    return numbers


def _hash(codes: NDArray[np.int64], column: int, seed: int) -> NDArray[np.uint64]:
    """Hash rows of codes to 64 bits: each code is added, then all bits are mixed (SplitMix64)."""
    words = [np.full(len(codes), word, np.uint64) for word in (seed % 2**64, column)]
    state = np.zeros(len(codes), np.uint64)
    for word in (*words, *codes.T.astype(np.uint64)):
        state += word + np.uint64(0x9E3779B97F4A7C15)  # wraps around, as unsigned numbers do
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def _check_n(sizes: Sequence[int], n: int | None) -> int:
    n = len(sizes) if n is None else check_count("ngrams", "n", n)
    if n > len(sizes):
        raise ConfigError(f"ngrams: n={n} must be at most {len(sizes)}, the codes of an item.")
    return n
