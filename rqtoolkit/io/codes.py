"""Codes on disk: .npy (N, depth) of the smallest unsigned type, or Parquet with ids beside them.

Or packed, in the same kinds of file: rows of bytes in faiss's layout, see `functional.codes`.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.codes import code_bits, pack_codes, smallest_dtype, unpack_codes
from rqtoolkit.io.tables import Table, open_table, write_table

__all__ = ["CodeTable", "PackedTable", "open_codes", "read_codes", "write_codes"]

_MOST_ENTRIES = 2**31  # of a level, where nobody says


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
        limits = np.full(self.depth, _MOST_ENTRIES) if self._sizes is None else self._sizes
        for chunk in self._table.chunks(rows):
            wrong = (chunk < 0) | (chunk >= limits)
            if wrong.any():
                row, level = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
                raise DataError(
                    f"{self.path}: codes of level {level} have to be from 0 below "
                    f"{limits[level]}; got {chunk[row, level]} in row {done + row}. "
                    "Name the model that made them."
                )
            yield chunk.astype(np.int64)
            done += len(chunk)


class PackedTable:
    """Codes of a file of packed rows, unpacked as they are read; attributes as in `CodeTable`."""

    def __init__(self, path: Path, table: Table, codebook_sizes: Sequence[int]) -> None:
        self.path = path
        self.rows, self.depth, self.ids = table.rows, len(codebook_sizes), table.ids
        self._table, self._sizes = table, codebook_sizes
        width = -(-sum(code_bits(codebook_sizes)) // 8)
        if table.dtype != np.uint8 or table.dim != width:
            raise DataError(
                f"{path}: packed codes of codebook_sizes={tuple(codebook_sizes)} have to be uint8 "
                f"of shape (N, {width}); got {table.dtype} of shape ({table.rows}, {table.dim}). "
                "Name the model that made them, or read them as codes that are not packed."
            )

    def chunks(self, rows: int) -> Iterator[NDArray[np.int64]]:
        """Yield all codes in order, shape (n, depth) with n at most `rows`.

        Raises:
            DataError: If a code leaves [0, codebook_size).
        """
        for chunk in self._table.chunks(rows):
            yield unpack_codes(chunk, self._sizes).astype(np.int64)


def open_codes(
    path: str | Path,
    *,
    codebook_sizes: Sequence[int] | None = None,
    packed: bool = False,
    key: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
) -> CodeTable | PackedTable:
    """Open a file of codes: .npy, .npz or Parquet.

    Args:
        path: File with a table (N, depth) of integers.
        codebook_sizes: Entries of each level; codes may stop at an earlier level.
        packed: The rows are bytes of whole stacks, as `pack_codes` lays them out; this needs
            codebook_sizes.
        key: Array of an .npz to read.
        column: Parquet column of lists; may be left out where there is only one.
        id_column: Parquet column of ids, for `CodeTable.ids`.

    Raises:
        ArtifactError: If the file is missing, unreadable, truncated or foreign.
        ConfigError: If the suffix is unknown, key or column do not name what is there, or sizes are
            missing.
        ShapeError: If the array has not two axes, or more levels than codebook_sizes.
        DataError: If the values are no integers, there are none, or packed rows are not uint8 of
            the right length.
    """
    table = open_table(path, key=key, column=column, id_column=id_column)
    if not packed:
        return CodeTable(Path(path), table, codebook_sizes)
    if codebook_sizes is None:
        raise ConfigError(f"{path}: packed codes need codebook_sizes to be read. Pass them.")
    return PackedTable(Path(path), table, codebook_sizes)


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
    packed: bool = False,
    ids: pa.ChunkedArray | None = None,
    id_column: str = "id",
) -> None:
    """Write codes as they come to .npy or Parquet (column `codes`), atomically.

    Args:
        path: File ending in .npy or .parquet.
        chunks: Arrays of shape (n, depth) that add up to `rows`; for one array pass `[codes]`.
        rows: Number of vectors.
        codebook_sizes: Entries of each level; they fix the stored type.
        packed: Write rows of bytes, uint8, as `pack_codes` makes them.
        ids: One id a vector, Parquet only.
        id_column: Name of their column.

    Raises:
        ArtifactError: If the folder is missing.
        ConfigError: If the suffix is neither, ids come with an .npy, or there are no bits to pack.
    """
    width = -(-sum(code_bits(codebook_sizes)) // 8)
    if packed and not width:
        raise ConfigError(f"{path}: codebooks of one entry leave no bits to pack.")
    write_table(
        path,
        (pack_codes(chunk, codebook_sizes) for chunk in chunks) if packed else chunks,
        rows=rows,
        dim=width if packed else len(codebook_sizes),
        dtype=np.dtype(np.uint8) if packed else smallest_dtype(codebook_sizes),
        column="codes",
        ids=ids,
        id_column=id_column,
    )
