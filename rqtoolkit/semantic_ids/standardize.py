"""Centre and scale embeddings, so that no quantizer sees all vectors as one point."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Standardization"]

_CONSTANT = 1e-6  # a column's spread, as a share of its size, that is rounding alone
_CHUNK_ROWS = 2**14  # squared at once, in float64


@dataclass(frozen=True, eq=False)
class Standardization:
    """Subtract a centre, divide by a scale: one for all columns, or one a column.

    Embeddings of unit norm lie close together beside how far they are from zero, and networks
    trained on them as they come answer with their mean. One scale for all columns keeps distances
    in proportion.

    Attributes:
        center: Shape (dim,), float32.
        scale: Above 0, shape (dim,), float32.
    """

    center: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def identity(cls, dim: int) -> "Standardization":
        """Leave vectors of a size as they are."""
        return cls(np.zeros(dim, np.float32), np.ones(dim, np.float32))

    @classmethod
    def fit(cls, x: NDArray, *, scale_columns: bool = False) -> "Standardization":
        """Take the mean and the standard deviation of vectors.

        Args:
            x: Vectors, shape (N, dim), N at least 1.
            scale_columns: Scale each column by itself. A constant column, whose values carry
                nothing, keeps the scale of all.
        """
        center = x.mean(axis=0, dtype=np.float64)
        chunks = (x[start : start + _CHUNK_ROWS] for start in range(0, len(x), _CHUNK_ROWS))
        squares = sum(np.square(chunk - center).sum(axis=0) for chunk in chunks)
        spread = np.sqrt(squares / len(x))
        overall = float(np.sqrt(np.square(spread).mean())) or 1.0
        scale = np.full(len(center), overall)
        if scale_columns:
            constant = spread <= _CONSTANT * np.maximum(np.abs(center), overall)
            scale = np.where(constant, overall, spread)
        return cls(center.astype(np.float32), scale.astype(np.float32))

    @property
    def dim(self) -> int:
        """Vector size."""
        return len(self.center)

    def apply(self, x: NDArray) -> NDArray[np.float32]:
        """Return standardised vectors, shape as x, float32."""
        standard = np.subtract(x, self.center, dtype=np.float32)
        standard /= self.scale
        return standard

    def restore(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return vectors in input units, shape as x, float32."""
        return x * self.scale + self.center
