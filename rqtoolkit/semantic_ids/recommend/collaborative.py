"""What training sequences say of items: vectors of those that keep company, and what codes know."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import svd
from scipy.sparse.linalg import LinearOperator, eigsh

from rqtoolkit.semantic_ids.recommend.sequences import Sequences

__all__ = ["code_means", "company_vectors", "start_vectors"]

_SMOOTHING = 3.0  # interactions that every item is credited with: rare pairs say little
_SHRINKAGE = 2.0  # items of value 0 that every mean over a code is taken with
_SWEEPS = 5
_SPREAD = 0.05  # of item vectors that training starts from


def company_vectors(
    sequences: Sequences, dim: int, *, window: int = 5, decay: float = 0.8
) -> NDArray[np.float32]:
    """Return vectors whose products say how often items stand near each other in the sequences.

    Items g places apart count decay^(g − 1), both ways; counts are divided by the square roots of
    the items' totals, and the vectors are the largest singular ones, times the root of their
    values.

    Args:
        sequences: What users did, oldest first.
        dim: Size of the vectors.
        window: Places apart that still count.
        decay: Of the weight with every place.

    Returns:
        Shape (items, dim), of variance 1 over the items that occur; 0 for the others.

    References:
        Levy & Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", NeurIPS 2014.
        https://papers.nips.cc/paper/5477
    """
    counts = _company(sequences, window, decay)
    scale = sparse.diags_array(1 / np.sqrt(counts.sum(1) + _SMOOTHING))
    normalized = (scale @ counts @ scale).astype(np.float64)
    items = len(sequences.item_ids)
    rank = min(dim, items - 1)
    vectors = np.zeros((items, dim), np.float32)
    if rank < 1 or normalized.nnz == 0:
        return vectors
    left, values = _left_singular(normalized, rank)
    vectors[:, :rank] = left * np.sqrt(values)
    met = sequences.counts > 0
    vectors[~met] = 0
    return vectors / max(float(vectors[met].std()), 1e-12)


def _company(sequences: Sequences, window: int, decay: float) -> sparse.csr_array:
    """Weighted counts (items, items) of items near each other."""
    users = np.repeat(np.arange(len(sequences)), sequences.lengths)
    firsts, seconds, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    for gap in range(1, window + 1):
        same = users[gap:] == users[:-gap]
        firsts.append(sequences.items[:-gap][same])
        seconds.append(sequences.items[gap:][same])
        weights.append(np.full(len(firsts[-1]), decay ** (gap - 1)))
    places = (np.concatenate(firsts), np.concatenate(seconds))
    shape = (len(sequences.item_ids),) * 2
    counts = sparse.coo_array((np.concatenate(weights), places), shape=shape).tocsr()
    return counts + counts.T


def _left_singular(
    matrix: sparse.csr_array, rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest singular values, ascending, and their left vectors: `svds`, the same every time.

    ARPACK takes random vectors where it has exhausted what it can reach from its start, as it does
    where items are alike, and `svds` does not let the caller seed those.
    """
    size = matrix.shape[1]
    gramian = LinearOperator((size, size), lambda x: matrix.T @ (matrix @ x), dtype=np.float64)
    seeded: dict[str, Any] = {"rng": 0} if "rng" in signature(eigsh).parameters else {}
    _, right = eigsh(gramian, k=rank, v0=np.ones(size), **seeded)
    left, values, _ = svd(matrix @ np.linalg.qr(right)[0], full_matrices=False)
    return left[:, ::-1], values[::-1]


def code_means(
    vectors: NDArray[np.floating], codes: NDArray[np.int64], codebook_sizes: Sequence[int]
) -> list[NDArray[np.float32]]:
    """Explain vectors as sums of one vector for each code, by ridge regression.

    Level after level, a code takes the mean of what the other levels leave of its items, drawn
    towards 0; a few sweeps of that come close to the least squares over all levels. An item
    without vector gets an estimate from others that share its codes.

    Args:
        vectors: Shape (N, dim).
        codes: Codes of the items, shape (N, length).
        codebook_sizes: Entries of each level.

    Returns:
        One table (K, dim) for each level.
    """
    tables = [np.zeros((size, vectors.shape[1]), np.float32) for size in codebook_sizes]
    left = vectors.astype(np.float32)
    members = [
        sparse.csr_array(
            (np.ones(len(codes), np.float32), (column, np.arange(len(codes)))),
            shape=(size, len(codes)),
        )
        for column, size in zip(codes.T, codebook_sizes, strict=True)
    ]
    for _ in range(_SWEEPS):
        for table, column, member in zip(tables, codes.T, members, strict=True):
            left += table[column]
            table[:] = (member @ left) / (member.sum(1)[:, None] + _SHRINKAGE)
            left -= table[column]
    return tables


def start_vectors(
    sequences: Sequences,
    known: NDArray[np.int64],
    known_codes: NDArray[np.int64],
    codebook_sizes: Sequence[int],
    dim: int,
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Return what a `SequenceModel` starts from: items that keep company have like vectors.

    Args:
        sequences: What users did.
        known: Row of each item's codes in known_codes, shape (items,); -1 where never met.
        known_codes: Distinct codes, shape (M, length).
        codebook_sizes: Entries of each level.
        dim: Width of the model.

    Returns:
        A table (K, dim) for each level, what codes explain of the company that items keep; and
        the rest, shape (M, dim).
    """
    met = np.flatnonzero(known >= 0)
    vectors = np.zeros((len(known_codes), dim), np.float32)
    np.add.at(vectors, known[met], company_vectors(sequences, dim)[met])
    vectors *= _SPREAD / np.bincount(known[met], minlength=len(known_codes))[:, None]
    tables = code_means(vectors, known_codes, codebook_sizes)
    for table, column in zip(tables, known_codes.T, strict=True):
        vectors -= table[column]
    return tables, vectors
