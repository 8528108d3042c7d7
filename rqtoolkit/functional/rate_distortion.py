"""What codes cost and what they lose: distortion, entropy, usage, and the bound to compare with.

Every function takes torch tensors or NumPy arrays, sums in float64 and returns Python numbers.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import DataError, ShapeError

__all__ = [
    "bits_per_vector",
    "code_counts",
    "distortion",
    "entropy_of_counts",
    "entropy_per_depth",
    "error_ratio",
    "gaussian_distortion",
    "perplexity",
    "prefix_entropy",
    "relative_error",
    "usage",
]

_CHUNK_ELEMENTS = 2**22  # 32 MiB of float64 at a time


def distortion(x: ArrayLike, x_hat: ArrayLike) -> float:
    """Return the squared error summed over dim and averaged over vectors.

    Args:
        x: Vectors, shape (..., dim).
        x_hat: What they became, same shape.

    Raises:
        ShapeError: If the shapes differ, or there is no vector.
    """
    x, x_hat = _pair(x, x_hat, "distortion")
    return _squared_error(x, x_hat) / len(x)


def relative_error(x: ArrayLike, x_hat: ArrayLike) -> float:
    """Return the squared error over that of the best constant, the per-dimension mean of `x`.

    0 is perfect and 1 is no better than the mean. Data that are constant give 0 when met exactly
    and infinity otherwise.

    Args:
        x: Vectors, shape (..., dim).
        x_hat: What they became, same shape.

    Raises:
        ShapeError: If the shapes differ, or there is no vector.
    """
    x, x_hat = _pair(x, x_hat, "relative_error")
    mean = x.mean(axis=0, dtype=np.float64, keepdims=True)
    return error_ratio(_squared_error(x, x_hat), _squared_error(x, np.broadcast_to(mean, x.shape)))


def bits_per_vector(codebook_sizes: Sequence[int]) -> float:
    """Return the rate of codes of fixed length, the sum of log2 codebook_size over depth."""
    return sum(math.log2(size) for size in codebook_sizes)


def code_counts(codes: ArrayLike, codebook_sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Count how often each entry of each level was chosen.

    Args:
        codes: Codes, shape (..., depth), integers.
        codebook_sizes: Entries of each level, length depth.

    Returns:
        For each level an array of shape (codebook_size,).

    Raises:
        ShapeError: If the last axis is not as long as codebook_sizes, or there is no vector.
        DataError: If the codes are not integers or leave [0, codebook_size).
    """
    columns = _code_columns(codes, codebook_sizes)
    return [
        np.bincount(column, minlength=size)
        for column, size in zip(columns, codebook_sizes, strict=True)
    ]


def entropy_per_depth(codes: ArrayLike, codebook_sizes: Sequence[int]) -> list[float]:
    """Return the empirical entropy of each level's codes in bits, 0 ≤ H ≤ log2 codebook_size.

    Args and errors as in `code_counts`.
    """
    return [entropy_of_counts(counts) for counts in _counts_of_chosen(codes, codebook_sizes)]


def perplexity(codes: ArrayLike, codebook_sizes: Sequence[int]) -> list[float]:
    """Return 2^H for each level: how many equally frequent entries would carry as much.

    Args and errors as in `code_counts`.
    """
    return [2.0**bits for bits in entropy_per_depth(codes, codebook_sizes)]


def usage(codes: ArrayLike, codebook_sizes: Sequence[int]) -> list[float]:
    """Return for each level the share of entries chosen at least once.

    Args and errors as in `code_counts`.
    """
    chosen = _counts_of_chosen(codes, codebook_sizes)
    return [len(counts) / size for counts, size in zip(chosen, codebook_sizes, strict=True)]


def prefix_entropy(codes: ArrayLike) -> list[float]:
    """Return the joint empirical entropy in bits of the first d codes, for d = 1 … depth.

    It never falls with d, is at most the sum of the levels' own entropies, and cannot exceed log2
    of the number of vectors: with few vectors it says little about the source.

    Args:
        codes: Codes, shape (..., depth), integers.

    Raises:
        ShapeError: If there is no vector.
        DataError: If the codes are not integers or are negative.
    """
    table = _code_table(codes, "prefix_entropy")
    entropies = []
    group = np.zeros(len(table), dtype=np.int64)  # rows of equal prefix share a number below N
    for level in range(table.shape[1]):
        _, column = np.unique(table[:, level], return_inverse=True)
        _, group, counts = np.unique(
            group * (column.max() + 1) + column, return_inverse=True, return_counts=True
        )
        entropies.append(entropy_of_counts(counts))
    return entropies


def gaussian_distortion(variances: ArrayLike, bits: float) -> float:
    """Return the least distortion of a Gaussian source at a rate, by reverse water-filling.

    For independent components of variance σ_i², D(R) = Σ min(θ, σ_i²) with the water level θ given
    by R = Σ max(0, ½ log2 σ_i² / θ). For correlated data pass the eigenvalues of the covariance.
    Among all sources of that covariance the Gaussian is the hardest: other data may go below.

    Args:
        variances: Variance of each component, shape (dim,), not negative.
        bits: Rate in bits per vector, not negative.

    Returns:
        Squared error summed over dim.

    Raises:
        ShapeError: If variances is not one non-empty axis.
        DataError: If a variance or the rate is negative or NaN.

    References:
        Cover & Thomas, "Elements of Information Theory", 2nd ed. 2006, theorem 10.3.3.
    """
    spectrum = np.asarray(_numpy(variances), dtype=np.float64)
    if spectrum.ndim != 1 or len(spectrum) == 0:
        raise ShapeError(
            f"gaussian_distortion: variances has to have shape (dim,); got {spectrum.shape}."
        )
    if not (np.isfinite(spectrum).all() and (spectrum >= 0).all() and bits >= 0):
        raise DataError(
            "gaussian_distortion: variances and bits have to be finite and not negative; "
            f"got the least variance {spectrum.min()} and bits={bits}."
        )
    spectrum = np.sort(spectrum[spectrum > 0])[::-1]
    if len(spectrum) == 0:
        return 0.0
    logs = np.log2(spectrum)
    sums = np.cumsum(logs)
    # Component i starts to receive bits once the rate reaches onset[i], which grows with i.
    onset = 0.5 * (sums - np.arange(1, len(logs) + 1) * logs)
    active = max(1, int(np.searchsorted(onset, bits, side="right")))
    level = 2.0 ** ((sums[active - 1] - 2.0 * bits) / active)
    return float(active * level + spectrum[active:].sum())


def entropy_of_counts(counts: NDArray[np.int64]) -> float:
    """Return the entropy in bits of the distribution that counts of shape (K,) describe."""
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def error_ratio(error: float, spread: float) -> float:
    """Return error / spread, where constant data (spread 0) give 0 for no error, else infinity."""
    if spread > 0:
        return error / spread
    return 0.0 if error == 0 else math.inf


def _numpy(x: ArrayLike) -> NDArray:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return np.asarray(x)


def _pair(x: ArrayLike, x_hat: ArrayLike, where: str) -> tuple[NDArray, NDArray]:
    x, x_hat = _numpy(x), _numpy(x_hat)
    if x.shape != x_hat.shape or x.size == 0 or x.ndim == 0:
        raise ShapeError(
            f"{where}: x and x_hat have to have one shape (..., dim) with at least one vector; "
            f"got {x.shape} and {x_hat.shape}."
        )
    return x.reshape(-1, x.shape[-1]), x_hat.reshape(-1, x.shape[-1])


def _row_slices(rows: int, dim: int) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // dim)
    return (slice(start, start + step) for start in range(0, rows, step))


def _squared_error(x: NDArray, x_hat: NDArray) -> float:
    total = 0.0
    for rows in _row_slices(*x.shape):
        total += float(np.square(np.subtract(x[rows], x_hat[rows], dtype=np.float64)).sum())
    return total


def _counts_of_chosen(codes: ArrayLike, codebook_sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Count the entries of each level that were chosen, however many there are besides."""
    chosen = []
    for column, size in zip(_code_columns(codes, codebook_sizes), codebook_sizes, strict=True):
        if size <= max(len(column), _CHUNK_ELEMENTS):
            counts = np.bincount(column)
            chosen.append(counts[counts > 0])
        else:
            chosen.append(np.unique(column, return_counts=True)[1])
    return chosen


def _code_columns(codes: ArrayLike, codebook_sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    table = _code_table(codes, "code_counts")
    if table.shape[1] != len(codebook_sizes):
        raise ShapeError(
            f"code_counts: codes has depth {table.shape[1]} but codebook_sizes has "
            f"{len(codebook_sizes)} levels; got shape {np.shape(codes)}."
        )
    for level, size in enumerate(codebook_sizes):
        if table[:, level].max() >= size:
            raise DataError(
                f"code_counts: codes of level {level} have to be below codebook_size={size}; "
                f"got {table[:, level].max()}."
            )
    return list(table.T.astype(np.int64))


def _code_table(codes: ArrayLike, where: str) -> NDArray:
    array = _numpy(codes)
    if array.ndim == 0 or array.size == 0:
        raise ShapeError(
            f"{where}: codes has to have shape (..., depth) with at least one vector; "
            f"got {array.shape}."
        )
    if array.dtype.kind not in "iu" or array.min() < 0:
        raise DataError(
            f"{where}: codes have to be integers from 0 on; "
            f"got dtype {array.dtype} and the least code {array.min()}."
        )
    return array.reshape(-1, array.shape[-1])
