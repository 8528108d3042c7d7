"""Codes on disk: .npy (N, depth) of the smallest unsigned type, or Parquet with ids beside them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.codes import smallest_dtype
from rqtoolkit.io.tables import Table, open_table, write_table

__all__ = ["CodeTable", "open_codes", "read_codes", "write_codes"]


class CodeTable:
    """Codes of a file, checked against the codebook sizes as they are read.

    Attributes:
        path: Where they lie.
        rows: Number of vectors they stand for.
        depth: Codes a vector.
        ids: One id a vector, where an id column was asked for.
    """

    def __init__(self, path: Path, table: Table, codebook_sizes: Sequence[int] | None) -> None:
        self.path = path
        self.rows, self.depth, self.ids = table.rows, table.dim, table.ids
        self._table = table
        if table.dtype.kind not in "iu":
            raise DataError(f"{path}: codes have to be integers; got dtype {table.dtype}.")
        if codebook_sizes is None:
            self._sizes = None
        elif self.depth > len(codebook_sizes):
            raise ShapeError(
                f"{path}: codes have depth {self.depth} but the quantizer has depth "
                f"{len(codebook_sizes)}; got shape ({self.rows}, {self.depth}). "
                "Name the model that made them."
            )
        else:
            self._sizes = np.asarray(codebook_sizes[: self.depth])

    def chunks(self, rows: int) -> Iterator[NDArray[np.int64]]:
        """Yield all codes in order, shape (n, depth) with n at most `rows`.

        Raises:
            DataError: If a code leaves [0, codebook_size).
        """
        done = 0
        for chunk in self._table.chunks(rows):
            wrong = chunk < 0 if self._sizes is None else (chunk < 0) | (chunk >= self._sizes)
            if wrong.any():
                row, level = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
                limit = "" if self._sizes is None else f" below {self._sizes[level]}"
                raise DataError(
                    f"{self.path}: codes of level {level} have to be from 0{limit}; "
                    f"got {chunk[row, level]} in row {done + row}. Name the model that made them."
                )
            yield chunk.astype(np.int64)
            done += len(chunk)


def open_codes(
    path: str | Path,
    *,
    codebook_sizes: Sequence[int] | None = None,
    key: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
) -> CodeTable:
    """Open a file of codes: .npy, .npz or Parquet.

    Args:
        path: File with a table (N, depth) of integers.
        codebook_sizes: Entries of each level; codes may stop at an earlier level.
        key: Array of an .npz to read.
        column: Parquet column of lists; may be left out where there is only one.
        id_column: Parquet column of ids, for `CodeTable.ids`.

    Raises:
        ArtifactError: If the file is missing, unreadable, truncated or foreign.
        ConfigError: If the suffix is unknown, or key or column do not name what is there.
        ShapeError: If the array has not two axes, or more levels than codebook_sizes.
        DataError: If the values are no integers, or there are none.
    """
    table = open_table(path, key=key, column=column, id_column=id_column)
    return CodeTable(Path(path), table, codebook_sizes)


def read_codes(
    path: str | Path, *, codebook_sizes: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Read a whole file of codes, shape (N, depth); errors as in `open_codes`.

    Raises:
        DataError: If a code leaves [0, codebook_size).
    """
    return np.concatenate(list(open_codes(path, codebook_sizes=codebook_sizes).chunks(2**20)))


def write_codes(
    path: str | Path,
    chunks: Iterable[NDArray],
    *,
    rows: int,
    codebook_sizes: Sequence[int],
    ids: pa.ChunkedArray | None = None,
    id_column: str = "id",
) -> None:
    """Write codes as they come to .npy or Parquet (column `codes`), atomically.

    Args:
        path: File ending in .npy or .parquet.
        chunks: Arrays of shape (n, depth) that add up to `rows`; for one array pass `[codes]`.
        rows: Number of vectors.
        codebook_sizes: Entries of each level; they fix the stored type.
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
        dim=len(codebook_sizes),
        dtype=smallest_dtype(codebook_sizes),
        column="codes",
        ids=ids,
        id_column=id_column,
    )
