"""Embeddings as they come, from arrays, data frames and files, read a few rows at a time."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.io.parquet import ParquetTable
from rqtoolkit.io.tables import MappedTable, Table, open_table
from rqtoolkit.semantic_ids.items import as_item_ids, check_distinct

__all__ = ["Embeddings", "open_embeddings"]

_CHUNK_BYTES = 2**26
_ID_COLUMN = "item_id"


class Embeddings:
    """A table of vectors, given out as finite float32.

    Attributes:
        rows: Number of vectors.
        dim: Values a vector.
    """

    def __init__(self, where: str, table: Table) -> None:
        self.rows, self.dim = table.rows, table.dim
        self._where, self._table = where, table

    def __len__(self) -> int:
        return self.rows

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """Yield all vectors in order, some 64 MiB of them at a time.

        Raises:
            DataError: If a value is NaN or infinite.
        """
        done = 0
        for chunk in self._table.chunks(max(1, _CHUNK_BYTES // (4 * self.dim))):
            yield self._finite(chunk, np.arange(done, done + len(chunk)))
            done += len(chunk)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of some rows, in the order asked for.

        Raises:
            DataError: If a value is NaN or infinite.
        """
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        vectors = self._finite(self._table.take(ascending), ascending)
        if np.array_equal(ascending, rows):
            return vectors
        placed = np.empty_like(vectors)
        placed[order] = vectors
        return placed

    def in_memory(self) -> "Embeddings":
        """Return the same where single rows cost little: Parquet is read whole, maps stay maps."""
        if not isinstance(self._table, ParquetTable):
            return self
        vectors = np.empty((self.rows, self.dim), np.float32)
        done = 0
        for chunk in self.chunks():
            vectors[done : done + len(chunk)] = chunk
            done += len(chunk)
        return Embeddings(self._where, MappedTable(vectors))

    def _finite(self, chunk: NDArray, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            vectors = np.asarray(chunk, dtype=np.float32)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{self._where}: embeddings have to be finite; got NaN or infinity in row "
                f"{rows[np.argmin(finite)]}. Drop or repair such rows."
            )
        return vectors


def open_embeddings(
    where: str,
    embeddings: Any,
    item_ids: Any = None,
    *,
    column: str | None = None,
    id_column: str | None = None,
) -> tuple[Embeddings, NDArray | None]:
    """Return embeddings of whatever kind, and the ids that came with them.

    Args:
        where: Method, for messages.
        embeddings: (N, dim) array, memory map or tensor; DataFrame of numbers, or one of a column
            of vectors; Series or pyarrow column of vectors; path to .npy, .npz, .fvecs, .bvecs or
            Parquet. The index of a frame or series gives the ids.
        item_ids: One id a row, before any other.
        column: Column of vectors, in Parquet and data frames.
        id_column: Column of ids, in Parquet and data frames; None takes a Parquet file's `item_id`
            where there is one.

    Returns:
        The embeddings; and the ids, shape (N,), None where there are none.

    Raises:
        ArtifactError: If a file is missing, unreadable or foreign.
        ConfigError: If a column is unknown, or asked of something without columns.
        ShapeError: If the embeddings are not (N, dim), or ids and rows differ in number.
        DataError: If the embeddings are no real numbers, or the ids not distinct integers or
            strings.
    """
    if isinstance(embeddings, str | PathLike):
        table = open_table(Path(embeddings), column=column, id_column=id_column)
        names = table.names if isinstance(table, ParquetTable) else []
        if item_ids is None and id_column is None and _ID_COLUMN in names:
            table = open_table(Path(embeddings), column=column, id_column=_ID_COLUMN)
        found = table.ids
    else:
        array, found = _from_memory(where, embeddings, column, id_column)
        table = MappedTable(array)
    ids = found if item_ids is None else item_ids
    if ids is None:
        return Embeddings(where, table), None
    ids = as_item_ids(where, ids)
    if len(ids) != table.rows:
        raise ShapeError(
            f"{where}: item_ids has to have one id a row of embeddings; got {len(ids)} ids for "
            f"{table.rows} rows."
        )
    check_distinct(where, ids)
    return Embeddings(where, table), ids


def _from_memory(
    where: str, embeddings: Any, column: str | None, id_column: str | None
) -> tuple[NDArray, Any]:
    if hasattr(embeddings, "column_names"):
        raise DataError(
            f"{where}: embeddings has to be an array, a data frame or a path; got a table with "
            f"columns {', '.join(map(str, embeddings.column_names))}. Pass table.to_pandas()."
        )
    ids = getattr(embeddings, "index", None)
    if callable(ids):  # a method of lists and of pyarrow's arrays
        ids = None
    if hasattr(embeddings, "columns"):
        for name in (column, id_column):
            if name is not None and name not in embeddings.columns:
                raise ConfigError(
                    f"{where}: column {name!r} is not in embeddings; got "
                    f"{', '.join(map(str, embeddings.columns))}. Name one of them."
                )
        if id_column is not None:
            ids = embeddings[id_column]
        if column is not None:
            embeddings = embeddings[column]
        elif id_column is not None:
            embeddings = embeddings.drop(columns=id_column)
    elif column is not None or id_column is not None:
        raise ConfigError(
            f"{where}: column={column!r} and id_column={id_column!r} are for Parquet files and "
            f"data frames; got {type(embeddings).__name__}. Leave them out."
        )
    return _matrix(where, embeddings), ids


def _matrix(where: str, embeddings: Any) -> NDArray:
    """Return the (N, dim) numbers of an array, tensor, frame or series of vectors."""
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().cpu().float()
    if hasattr(embeddings, "buffers"):  # a pyarrow array, which copies only when told
        embeddings = embeddings.to_numpy(zero_copy_only=False)
    try:
        array = embeddings.to_numpy() if hasattr(embeddings, "to_numpy") else np.asarray(embeddings)
    except ValueError as error:  # lists of different lengths
        raise ShapeError(
            f"{where}: embeddings have to be vectors of one length; got {error}"
        ) from error
    if array.dtype.kind == "O" and array.ndim == 1 and len(array):
        lengths = {np.shape(vector) for vector in array}
        if len(lengths) > 1:
            raise ShapeError(
                f"{where}: embeddings have to be vectors of one length; got shapes "
                f"{', '.join(map(str, sorted(lengths)[:5]))}."
            )
        array = np.stack([np.asarray(vector) for vector in array])
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(
            f"{where}: embeddings has to have shape (N, dim) with neither 0; got {array.shape}."
        )
    if array.dtype.kind not in "iuf":
        raise DataError(
            f"{where}: embeddings have to be real numbers; got dtype {array.dtype}. "
            "Name the columns of vectors and ids, or convert them."
        )
    return array
