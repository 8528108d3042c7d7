"""Vectors on disk as float32 in chunks, and written as they come."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rqtoolkit.errors import DataError
from rqtoolkit.functional.arguments import LARGEST_VALUE
from rqtoolkit.io.tables import Table, open_table, write_table

__all__ = ["VectorTable", "open_vectors", "write_vectors"]


class VectorTable:
    """Vectors of a file, converted to float32 and checked as they are read.

    Attributes:
        path: Where they lie.
        rows: Number of vectors.
        dim: Values a vector.
        dtype: Type in the file.
        ids: One id a vector, where an id column was asked for.
    """

    def __init__(self, path: Path, table: Table) -> None:
        self.path = path
        self.rows, self.dim, self.dtype, self.ids = table.rows, table.dim, table.dtype, table.ids
        self._table = table

    def chunks(self, rows: int) -> Iterator[NDArray[np.float32]]:
        """Yield all vectors in order, at most `rows` at a time.

        Raises:
            DataError: If a value is NaN, infinite, or beyond ±1e15.
        """
        done = 0
        for chunk in self._table.chunks(rows):
            yield self._convert(chunk, np.arange(done, done + len(chunk)))
            done += len(chunk)

    def sample(self, rows: int, *, seed: int = 0) -> NDArray[np.float32]:
        """Return all vectors, or `rows` of them drawn evenly without repetition, in file order.

        Raises:
            DataError: If a value is NaN, infinite, or beyond ±1e15.
        """
        indices = np.arange(self.rows)
        if rows < self.rows:
            indices = np.random.default_rng(seed).choice(self.rows, rows, replace=False)
            indices.sort()
        return self._convert(self._table.take(indices), indices)

    def _convert(self, chunk: NDArray, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            vectors = np.array(chunk, dtype=np.float32, order="C")
        finite = np.abs(vectors) <= LARGEST_VALUE  # nor is NaN
        if not finite.all():
            row, position = np.unravel_index(int(np.argmin(finite)), vectors.shape)
            raise DataError(
                f"{self.path} has to hold finite values within ±{LARGEST_VALUE:g}; got "
                f"{chunk[row, position]} in row {indices[row]}, dimension {position}. "
                "Drop or repair such rows."
            )
        return vectors


def open_vectors(
    path: str | Path,
    *,
    key: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
) -> VectorTable:
    """Open a file of vectors: .npy, .npz, .fvecs, .bvecs or Parquet.

    Args:
        path: File with a table (N, dim) of float16/32/64 or integers.
        key: Array of an .npz to read; may be left out where it has only one.
        column: Parquet column of lists; may be left out where there is only one.
        id_column: Parquet column of ids, for `VectorTable.ids`.

    Raises:
        ArtifactError: If the file is missing, unreadable, truncated or foreign.
        ConfigError: If the suffix is unknown, or key or column do not name what is there.
        ShapeError: If the array has not two axes.
        DataError: If the values are no real numbers, or there are none.

    Example:
        >>> vectors = open_vectors("embeddings.parquet", column="embedding")
        >>> for chunk in vectors.chunks(10_000):  # (n, dim) float32
        ...     codes = quantizer.encode(torch.from_numpy(chunk))
    """
    return VectorTable(Path(path), open_table(path, key=key, column=column, id_column=id_column))


def write_vectors(
    path: str | Path,
    chunks: Iterable[NDArray[np.float32]],
    *,
    rows: int,
    dim: int,
    ids: pa.ChunkedArray | None = None,
    id_column: str = "id",
) -> None:
    """Write vectors as they come to .npy (float32) or Parquet (column `vectors`), atomically.

    Args:
        path: File ending in .npy or .parquet.
        chunks: Arrays of shape (n, dim) that add up to `rows`.
        rows: Number of vectors.
        dim: Values a vector.
        ids: One id a vector, Parquet only.
        id_column: Name of their column.

    Raises:
        ArtifactError: If the folder is missing.
        ConfigError: If the suffix is neither, or ids come with an .npy.
    """
    write_table(
        path,
        chunks,
        rows=rows,
        dim=dim,
        dtype=np.dtype(np.float32),
        column="vectors",
        ids=ids,
        id_column=id_column,
    )
