"""Tables of numbers on disk, read by rows: .npy, .npz, .fvecs, .bvecs and Parquet.

Nothing is unpickled and no file is read whole: arrays are memory-mapped and Parquet is streamed.
What the rows mean, vectors or codes, is decided one module up.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pyarrow import ChunkedArray

from rqtoolkit.errors import ArtifactError, ConfigError, DataError, RQToolkitError, ShapeError
from rqtoolkit.io.atomic import atomic_path
from rqtoolkit.io.parquet import ParquetTable, unknown_name, unreadable, write_parquet

__all__ = ["READABLE", "WRITABLE", "Table", "check_suffix", "open_table", "write_table"]

READABLE = (".npy", ".npz", ".fvecs", ".bvecs", ".parquet")
WRITABLE = (".npy", ".parquet")
_VECS: dict[str, np.dtype] = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1")}


class Table(Protocol):
    """Rows of numbers as they lie in the file: `rows` of `dim` values of `dtype`, perhaps ids."""

    rows: int
    dim: int
    dtype: np.dtype
    ids: ChunkedArray | None

    def chunks(self, rows: int) -> Iterator[NDArray]:
        """Yield all rows in order, at most `rows` at a time."""

    def take(self, indices: NDArray[np.int64]) -> NDArray:
        """Return the rows at ascending indices."""


class MappedTable:
    """A memory-mapped array of shape (rows, dim)."""

    ids = None

    def __init__(self, array: NDArray) -> None:
        self._array = array
        self.rows, self.dim = array.shape
        self.dtype = array.dtype

    def chunks(self, rows: int) -> Iterator[NDArray]:
        """Yield all rows in order, at most `rows` at a time."""
        for start in range(0, self.rows, rows):
            yield self._array[start : start + rows]

    def take(self, indices: NDArray[np.int64]) -> NDArray:
        """Return the rows at ascending indices."""
        return self._array[indices]


class VecsTable:
    """A memory-mapped file of rows that each start with their length as a 4-byte integer."""

    ids = None

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        size = path.stat().st_size
        if size == 0:
            raise DataError(f"{path} is empty; got 0 bytes.")
        with path.open("rb") as stream:
            self.dim = int.from_bytes(stream.read(4), "little", signed=True)
        row = np.dtype([("dim", "<i4"), ("values", dtype, (max(self.dim, 0),))])
        if self.dim < 1 or size % row.itemsize:
            raise ValueError(f"{size} bytes, no whole number of rows of {self.dim} values")
        self._path, self._array = path, np.memmap(path, row, "r")
        self.rows, self.dtype = len(self._array), dtype

    def chunks(self, rows: int) -> Iterator[NDArray]:
        """Yield all rows in order, at most `rows` at a time."""
        for start in range(0, self.rows, rows):
            yield self._values(self._array[start : start + rows])

    def take(self, indices: NDArray[np.int64]) -> NDArray:
        """Return the rows at ascending indices."""
        return self._values(self._array[indices])

    def _values(self, chunk: NDArray) -> NDArray:
        wrong = chunk["dim"] != self.dim
        if wrong.any():
            raise ShapeError(
                f"{self._path} has to hold rows of one length; got {self.dim} values in row 0 "
                f"and {chunk['dim'][np.argmax(wrong)]} in a later one."
            )
        return chunk["values"]


def open_table(
    path: str | Path,
    *,
    key: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
) -> Table:
    """Open a table of numbers by its suffix.

    Args:
        path: File ending in one of `READABLE`.
        key: Array of an .npz to read; may be left out where it has only one.
        column: Parquet column of lists to read; may be left out where there is only one.
        id_column: Parquet column of ids to keep beside the rows.

    Raises:
        ArtifactError: If the file is missing, unreadable, truncated or foreign.
        ConfigError: If the suffix is unknown, or key or column do not name what is there.
        ShapeError: If the array has not two axes.
        DataError: If the values are no real numbers, or there are none.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path} does not exist. Check the path.")
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder. Name a file in it.")
    suffix = check_suffix(path, READABLE)
    _refuse("array", key, path, suffix == ".npz", ".npz")
    _refuse("column", column, path, suffix == ".parquet", "Parquet")
    _refuse("column", id_column, path, suffix == ".parquet", "Parquet")
    try:
        table = _open(path, suffix, key, column, id_column)
    except (RQToolkitError, PermissionError):
        raise
    except Exception as error:  # parsers of foreign bytes raise a dozen kinds, tokenize's included
        raise unreadable(path, error) from error
    if table.dtype.kind not in "iuf":
        raise DataError(
            f"{path} has to hold floating-point or integer numbers; got dtype {table.dtype}."
        )
    if table.rows == 0 or table.dim == 0:
        raise DataError(f"{path} is empty; got shape ({table.rows}, {table.dim}).")
    return table


def write_table(
    path: str | Path,
    chunks: Iterable[NDArray],
    *,
    rows: int,
    dim: int,
    dtype: np.dtype,
    column: str,
    ids: ChunkedArray | None = None,
    id_column: str = "id",
) -> None:
    """Write rows as they come to an .npy of shape (rows, dim) or to Parquet, atomically.

    Args:
        path: File ending in one of `WRITABLE`; an existing one is replaced.
        chunks: Arrays of shape (n, dim) that add up to `rows`.
        rows: Number of rows.
        dim: Values a row.
        dtype: Type to store; chunks are cast to it.
        column: Name of the Parquet column, a fixed-size list.
        ids: One id a row, Parquet only.
        id_column: Name of their column.

    Raises:
        ArtifactError: If the folder is missing.
        ConfigError: If the suffix is neither, or ids come with an .npy.
    """
    path = Path(path)
    suffix = check_suffix(path, WRITABLE)
    if ids is not None and suffix == ".npy":
        raise ConfigError(f"output: {path} has no room for ids. Name a .parquet file.")
    if ids is not None and id_column == column:
        raise ConfigError(
            f"column {id_column!r} of ids has the name of the column to write into {path}. "
            "Rename the column of ids."
        )
    with atomic_path(path) as temporary:
        if suffix == ".npy":
            # Not a memory map: a full disk then is an error to catch and not a fatal signal.
            with temporary.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, dim)})
                for chunk in chunks:
                    file.write(np.ascontiguousarray(chunk, dtype=dtype).data)
        else:
            write_parquet(temporary, chunks, dim, dtype, column, ids, id_column)


def check_suffix(path: Path, allowed: tuple[str, ...]) -> str:
    """Return the suffix of `path` in lower case.

    Raises:
        ConfigError: If it is not one of `allowed`.
    """
    suffix = path.suffix.lower()
    if suffix not in allowed:
        raise ConfigError(
            f"{path} has to end in one of {', '.join(allowed)}; got {suffix or 'no suffix'!r}."
        )
    return suffix


def _open(path: Path, suffix: str, key: str | None, column: str | None, ids: str | None) -> Table:
    if suffix == ".parquet":
        return ParquetTable(path, column, ids)
    if suffix == ".npz":
        return MappedTable(_map_npz(path, key))
    if suffix == ".npy":
        with path.open("rb") as stream:
            return MappedTable(_map_npy(stream, path))
    return VecsTable(path, _VECS[suffix])


def _map_npy(stream: Any, path: Path) -> NDArray:
    """Map the array whose header starts where the stream, a real file, stands."""
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise DataError(f"{path} has to hold plain numbers; got .npy version {version}.")
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "iuf":
        raise DataError(f"{path} has to hold floating-point or integer numbers; got dtype {dtype}.")
    if len(shape) != 2:
        raise ShapeError(f"{path} has to have two axes (N, dim); got shape {shape}.")
    if 0 in shape:
        raise DataError(f"{path} is empty; got shape {shape}.")
    return np.memmap(
        stream, dtype, "r", offset=stream.tell(), shape=shape, order="F" if fortran else "C"
    )


def _map_npz(path: Path, key: str | None) -> NDArray:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if key is None:
            if len(names) != 1:
                raise ConfigError(
                    f"{path} holds {', '.join(names) or 'no array'}. Name one as key."
                )
            key = names[0]
        if key not in names:
            raise unknown_name("array", key, path, names)
        # A zip member cannot be mapped in place when compressed: it is unpacked to a file without
        # a name, which vanishes with the process.
        name = archive.namelist()[names.index(key)]
        with tempfile.TemporaryFile() as stream, archive.open(name) as member:
            shutil.copyfileobj(member, stream, 2**20)
            stream.seek(0)
            return _map_npy(stream, path)


def _refuse(kind: str, value: str | None, path: Path, fits: bool, files: str) -> None:
    if value is not None and not fits:
        raise ConfigError(f"{path} has no {kind} {value!r}, as {files} files have. Leave it out.")
