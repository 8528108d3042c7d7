"""Rows of numbers in Parquet: a column of lists, streamed batch by batch."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError

__all__ = ["ParquetTable", "unknown_name", "unreadable", "write_parquet"]


class ParquetTable:
    """A Parquet column of lists, all of one length, and perhaps a column of ids beside it.

    Attributes:
        names: Columns of the file.
    """

    def __init__(self, path: Path, column: str | None, id_column: str | None) -> None:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        if id_column is not None and id_column not in schema.names:
            raise unknown_name("column", id_column, path, schema.names)
        self.names = schema.names
        self._file, self._path, self._column = file, path, _choose_column(schema, path, column)
        self.rows = file.metadata.num_rows
        self.dim = 0
        self.dtype = np.dtype(schema.field(self._column).type.value_type.to_pandas_dtype())
        for first in self.chunks(1):
            self.dim = first.shape[1]
            break
        self.ids = None
        if id_column is not None:
            self.ids = file.read(columns=[id_column]).column(id_column)

    def chunks(self, rows: int) -> Iterator[NDArray]:
        """Yield all rows in order, at most `rows` at a time."""
        done = 0
        try:
            for batch in self._file.iter_batches(batch_size=rows, columns=[self._column]):
                if len(batch):
                    yield self._matrix(batch.column(0), done)
                    done += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self._path, error) from error

    def take(self, indices: NDArray[np.int64]) -> NDArray:
        """Return the rows at ascending indices, by one pass over the column."""
        taken, done = [np.empty((0, self.dim), self.dtype)], 0
        for chunk in self.chunks(4096):
            first, last = np.searchsorted(indices, [done, done + len(chunk)])
            taken.append(chunk[indices[first:last] - done])
            done += len(chunk)
        return np.concatenate(taken)

    def _matrix(self, lists: pa.Array, start: int) -> NDArray:
        where = f"{self._path}: column {self._column!r}"
        values = lists.flatten()
        if lists.null_count or values.null_count:
            row = start + _first_null(lists)
            raise DataError(f"{where} holds nulls, first in row {row}. Drop or fill these rows.")
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        dim = self.dim or int(lengths[0])
        if dim == 0:
            raise DataError(f"{where} is empty; got lists of length 0.")
        if (lengths != dim).any():
            row = int(np.argmax(lengths != dim))
            raise ShapeError(
                f"{where} has to hold lists of one length; got {dim} values in row 0 and "
                f"{lengths[row]} in row {start + row}."
            )
        return values.to_numpy(zero_copy_only=False).reshape(-1, dim)


def _first_null(lists: pa.Array) -> int:
    """Return the first row that is null or holds one."""
    rows = enumerate(lists)
    return next(row for row, one in rows if not one.is_valid or one.values.null_count)


def write_parquet(
    path: Path,
    chunks: Iterable[NDArray],
    dim: int,
    dtype: np.dtype,
    column: str,
    ids: pa.ChunkedArray | None,
    id_column: str,
) -> None:
    """Write chunks of rows, and the ids beside them, as they come.

    Args:
        path: File to write.
        chunks: Arrays of shape (n, dim).
        dim: Values a row.
        dtype: Type to store.
        column: Name of the fixed-size list column.
        ids: One id a row.
        id_column: Name of their column.
    """
    fields = [pa.field(column, pa.list_(pa.from_numpy_dtype(dtype), dim), nullable=False)]
    if ids is not None:
        fields.insert(0, pa.field(id_column, ids.type))
    schema = pa.schema(fields)
    done = 0
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in chunks:
            flat = pa.array(np.ascontiguousarray(chunk, dtype=dtype).reshape(-1))
            columns: list[Any] = [pa.FixedSizeListArray.from_arrays(flat, type=fields[-1].type)]
            if ids is not None:
                columns.insert(0, ids.slice(done, len(chunk)).combine_chunks())
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            done += len(chunk)


def unknown_name(kind: str, value: str, path: Path, names: list[str]) -> ConfigError:
    """Return the error for a name that the file lacks."""
    return ConfigError(f"{path} has no {kind} {value!r}; it has {', '.join(names)}.")


def unreadable(path: Path, error: Exception) -> ArtifactError:
    """Return the error for a file that cannot be read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return ArtifactError(
        f"{path} is not a readable {path.suffix} file, or is truncated; got {reason}. "
        "Write it again, or name another file."
    )


def _choose_column(schema: pa.Schema, path: Path, column: str | None) -> str:
    lists = [field.name for field in schema if _is_list_of_numbers(field.type)]
    if column is None:
        if len(lists) != 1:
            raise ConfigError(
                f"{path} has to have one column of lists of numbers; got "
                f"{', '.join(lists) or 'none'} among {', '.join(schema.names)}. "
                "Name one as column."
            )
        return lists[0]
    if column not in schema.names:
        raise unknown_name("column", column, path, schema.names)
    if column not in lists:
        raise DataError(
            f"{path}: column {column!r} has to hold lists of numbers; "
            f"got {schema.field(column).type}."
        )
    return column


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    types = pa.types
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return types.is_floating(kind.value_type) or types.is_integer(kind.value_type)
