"""Rate-distortion figures and covariance of data that come in chunks, by sums that add up.

Chunks may be measured in any order and on any machine: the sums of the whole are the sum of sums.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.rate_distortion import code_counts, entropy_of_counts, error_ratio

__all__ = ["RateDistortionSums", "covariance"]


@dataclass(frozen=True)
class RateDistortionSums:
    """What a chunk of vectors adds to the figures of the whole; `a + b` merges two chunks.

    Attributes:
        rows: Number of vectors.
        mean: Mean of each dimension, shape (dim,), float64.
        spread: Squared distance to that mean, summed over vectors and dimensions.
        errors: Squared error of the first 1, 2, … levels summed over vectors, shape (levels,).
        counts: How often each entry of each level was chosen, depth arrays (codebook_size,).

    References:
        Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances", 1979: means and spreads that merge without cancellation.
    """

    rows: int
    mean: NDArray[np.float64]
    spread: float
    errors: NDArray[np.float64]
    counts: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(
        cls, x: NDArray, codes: NDArray, partial_sums: NDArray, codebook_sizes: Sequence[int]
    ) -> "RateDistortionSums":
        """Measure one chunk.

        Args:
            x: Vectors, shape (N, dim).
            codes: Codes, shape (N, depth), integers.
            partial_sums: What the first 1, 2, … levels decode to, shape (N, levels, dim): as many
                levels as codes, or fewer where a level has several codes.
            codebook_sizes: Entries of each level, length depth.

        Raises:
            ShapeError: If the shapes do not fit together, or there is no vector.
            DataError: If the codes are not integers or leave [0, codebook_size).
        """
        rows, dim = x.shape
        if partial_sums.ndim != 3 or partial_sums.shape[::2] != (rows, dim) or len(codes) != rows:
            raise ShapeError(
                f"RateDistortionSums.of: x {x.shape}, codes {codes.shape} and partial_sums "
                f"{partial_sums.shape} have to be (N, dim), (N, depth) and (N, levels, dim)."
            )
        counts = tuple(code_counts(codes, codebook_sizes))
        exact = x.astype(np.float64)
        mean = exact.mean(axis=0)
        errors = [
            float(np.square(exact - partial_sums[:, level]).sum())
            for level in range(partial_sums.shape[1])
        ]
        spread = float(np.square(exact - mean).sum())
        return cls(rows, mean, spread, np.array(errors), counts)

    def __add__(self, other: "RateDistortionSums") -> "RateDistortionSums":
        rows = self.rows + other.rows
        step = other.mean - self.mean
        between = float(np.square(step).sum()) * self.rows * other.rows / rows
        return RateDistortionSums(
            rows=rows,
            mean=self.mean + step * (other.rows / rows),
            spread=self.spread + other.spread + between,
            errors=self.errors + other.errors,
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
        )

    @property
    def mse(self) -> list[float]:
        """Squared error summed over dim, mean over vectors, of the first 1, 2, … levels."""
        return [float(error) / self.rows for error in self.errors]

    @property
    def relative_error(self) -> list[float]:
        """Squared error over that of the mean vector, of the first 1, 2, … levels."""
        return [error_ratio(float(error), self.spread) for error in self.errors]

    @property
    def usage(self) -> list[float]:
        """Share of each level's entries chosen at least once."""
        return [float((counts > 0).mean()) for counts in self.counts]

    @property
    def entropy(self) -> list[float]:
        """Empirical entropy of each level's codes in bits."""
        return [entropy_of_counts(counts) for counts in self.counts]

    @property
    def perplexity(self) -> list[float]:
        """2^entropy of each level."""
        return [2.0**bits for bits in self.entropy]


def covariance(chunks: Iterable[NDArray]) -> NDArray[np.float64]:
    """Return the covariance (divided by N) of vectors that come in chunks.

    Args:
        chunks: Arrays of shape (n, dim), n at least 1.

    Returns:
        Matrix of shape (dim, dim).

    Raises:
        DataError: If there is no chunk.
    """
    rows, mean, scatter = 0, np.zeros(()), np.zeros(())
    for chunk in chunks:
        centre = chunk.mean(axis=0, dtype=np.float64)
        centred = chunk - centre
        step = centre - mean
        total = rows + len(chunk)
        scatter = scatter + centred.T @ centred + np.outer(step, step) * (rows * len(chunk) / total)
        mean = mean + step * (len(chunk) / total)
        rows = total
    if rows == 0:
        raise DataError("covariance: there is no vector. Pass at least one chunk.")
    return scatter / rows
