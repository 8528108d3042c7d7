"""Residual quantizers as faiss indexes: tables and codes in and out, and index files.

An index made here holds the very bytes of `pack_codes`, and its `sa_decode` sums the same float32
codewords in the same order.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ArtifactError, ConfigError, ShapeError
from rqtoolkit.functional.codes import pack_codes
from rqtoolkit.functional.kmeans import import_faiss
from rqtoolkit.io.atomic import atomic_path

__all__ = ["add_codes", "read_index", "residual_index", "residual_tables", "write_index"]

_METRICS = {"l2": "METRIC_L2", "ip": "METRIC_INNER_PRODUCT"}
_NORM_ENTRIES = 2**32  # a float32 behind the codes, packed as one more level
_CHUNK_ROWS = 2**16
_ORTHONORMAL = 1e-4  # largest error of A Aᵀ, float32 rotations of a few thousand dimensions


def residual_index(
    tables: Sequence[NDArray[np.float32]],
    *,
    metric: str = "l2",
    beam: int = 1,
    norms: bool = False,
    centroids: NDArray[np.float32] | None = None,
) -> Any:
    """Make a trained, empty faiss index of a residual quantizer.

    Inner products are searched through look-up tables (faiss's `ST_LUT_nonorm`), which rank
    exactly. L2 needs the norm of each decoded vector as well: without `norms`, faiss decodes every
    vector for every query (`ST_decompress`); with it, four bytes behind each code hold the norm
    (`ST_norm_float`) and tables do, tens of times faster. faiss's 8- and 4-bit norms do not rank
    exactly and are not offered.

    Args:
        tables: Codewords of each level, (2^bits, dim) each; the number of bits may differ.
        metric: "l2" or "ip" (inner product).
        beam: Prefixes kept where faiss itself encodes, in `index.add`.
        norms: Store the squared norm of each decoded vector. Codes are the same bits, but four
            bytes longer. For "l2" alone.
        centroids: Shape (lists, dim): makes the inverted-file variant, whose search visits
            `index.nprobe` lists. Codes stay those of whole vectors (`by_residual` is false).

    Returns:
        `faiss.IndexResidualQuantizer`, or `faiss.IndexIVFResidualQuantizer` with centroids.

    Raises:
        ConfigError: If a level's size is no power of two, or the metric is unknown or needs no
            norms.
        MissingDependencyError: If faiss is not installed.
    """
    faiss = import_faiss()
    if metric not in _METRICS:
        raise ConfigError(f"to_faiss: metric={metric!r} is unknown. Choose 'l2' or 'ip'.")
    if norms and metric == "ip":
        raise ConfigError("to_faiss: norms=True serves metric='l2' alone. Leave it out for 'ip'.")
    dim, kind = tables[0].shape[1], getattr(faiss, _METRICS[metric])
    widths = [_whole_bits(level, len(table)) for level, table in enumerate(tables)]
    if not any(widths):
        raise ConfigError("to_faiss: codebooks of one entry leave no bits to store. Use larger.")
    bits = faiss.UInt64Vector()
    for width in widths:
        bits.push_back(width)
    search = "ST_norm_float" if norms else "ST_decompress" if metric == "l2" else "ST_LUT_nonorm"
    search_type = getattr(faiss.AdditiveQuantizer, search)
    if centroids is None:
        index = faiss.IndexResidualQuantizer(dim, bits, kind, search_type)
    else:
        coarse = faiss.IndexFlat(dim, kind)
        coarse.add(np.ascontiguousarray(centroids, dtype=np.float32))
        index = faiss.IndexIVFResidualQuantizer(
            coarse, dim, len(centroids), bits, kind, search_type
        )
        index.by_residual = False
    flat = np.concatenate([np.asarray(table, dtype=np.float32) for table in tables]).ravel()
    faiss.copy_array_to_vector(flat, index.rq.codebooks)
    index.rq.max_beam_size = beam
    index.rq.is_trained = index.is_trained = True
    return index


def add_codes(index: Any, codes: ArrayLike, vectors: NDArray[np.float32] | None = None) -> None:
    """Append codes to an index that `residual_index` made; ids count on from those it has.

    Args:
        index: faiss index.
        codes: Shape (N, depth), integers.
        vectors: What was encoded, shape (N, dim): decides the list of each in an inverted file;
            the decoded vectors when None.

    Raises:
        ShapeError: If there are not depth codes a row, or not as many vectors as rows.
        DataError: If codes are not integers, or out of range.
    """
    faiss = import_faiss()
    codes = np.asarray(codes)
    sizes = [2**bits for bits in _level_bits(faiss, index.rq)]
    if codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise ShapeError(f"add_codes: codes has to be (N, {len(sizes)}); got {codes.shape}.")
    if vectors is not None and vectors.shape != (len(codes), index.d):
        raise ShapeError(
            f"add_codes: vectors has to be ({len(codes)}, {index.d}), one for each row of codes; "
            f"got {vectors.shape}."
        )
    for start in range(0, len(codes), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        chunk = None if vectors is None else vectors[rows]
        index.add_sa_codes(_index_bytes(faiss, index, codes[rows], sizes, chunk))


def residual_tables(index: Any) -> tuple[list[NDArray[np.float32]], int]:
    """Return the tables and the beam of a residual quantizer trained in faiss.

    Orthonormal transforms in front of it (rotations, PCA without whitening) are folded into the
    tables: nearest codewords are the same on either side of them.

    Args:
        index: `faiss.ResidualQuantizer`, `IndexResidualQuantizer`, `IndexIVFResidualQuantizer` with
            by_residual off, or one of them in an `IndexIDMap` or `IndexPreTransform`.

    Returns:
        Codewords of each level, (2^bits, dim) each; and the prefixes that faiss keeps.

    Raises:
        ConfigError: If it is something else, or not trained.
        MissingDependencyError: If faiss is not installed.
    """
    faiss = import_faiss()
    # Downcasting gives a view that does not keep the index alive: `index` has to stay bound.
    view = faiss.downcast_index(index) if isinstance(index, faiss.Index) else index
    if isinstance(view, faiss.IndexIDMap):
        return residual_tables(view.index)
    if isinstance(view, faiss.IndexPreTransform):
        tables, beam = residual_tables(view.index)
        for position in reversed(range(view.chain.size())):
            tables = _fold(faiss, faiss.downcast_VectorTransform(view.chain.at(position)), tables)
        return tables, beam
    if isinstance(view, faiss.IndexIVFResidualQuantizer) and view.by_residual:
        raise ConfigError(
            "from_faiss: the codebooks of an inverted file with by_residual=True encode what its "
            "centroids leave over, not vectors. Train it with index.by_residual = False."
        )
    if isinstance(view, faiss.IndexResidualQuantizer | faiss.IndexIVFResidualQuantizer):
        view = view.rq
    if not isinstance(view, faiss.ResidualQuantizer):
        raise ConfigError(
            "from_faiss: index has to be a residual quantizer over whole vectors; got "
            f"{type(view).__name__}. Pass an IndexResidualQuantizer, perhaps in an IndexIDMap or "
            "IndexPreTransform."
        )
    if not view.is_trained:
        raise ConfigError("from_faiss: index is not trained. Call index.train(vectors) first.")
    sizes = [2**bits for bits in _level_bits(faiss, view)]
    flat = faiss.vector_to_array(view.codebooks).reshape(-1, view.d)[: sum(sizes)]
    return np.split(flat, np.cumsum(sizes)[:-1]), int(view.max_beam_size)


def write_index(path: str | Path, index: Any) -> None:
    """Write a faiss index as faiss does, atomically.

    Args:
        path: File to write.
        index: Any faiss index.

    Raises:
        ArtifactError: If the file cannot be written.
    """
    faiss = import_faiss()
    with atomic_path(path) as temporary:
        try:
            faiss.write_index(index, str(temporary))
        except RuntimeError as error:
            raise ArtifactError(f"{path} cannot be written by faiss; got {error}.") from error


def read_index(path: str | Path) -> Any:
    """Read a faiss index.

    Args:
        path: File that `write_index` or faiss wrote.

    Raises:
        ArtifactError: If the file is missing, damaged or foreign.
    """
    faiss = import_faiss()
    if not Path(path).is_file():
        raise ArtifactError(f"{path} is no file. Check the path.")
    try:
        return faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ArtifactError(
            f"{path} is no readable faiss index; got {reason}. Name a file that faiss wrote."
        ) from error


def _whole_bits(level: int, size: int) -> int:
    """Return log2 of a codebook's size, or say why faiss cannot take it."""
    bits = (size - 1).bit_length()
    if size != 2**bits:
        raise ConfigError(
            f"to_faiss: codebook_size={size} of level {level} is no power of two, and faiss "
            f"numbers codewords by whole bits. Fit with {2 ** (bits - 1)} or {2**bits}."
        )
    return bits


def _level_bits(faiss: Any, quantizer: Any) -> list[int]:
    return [int(bits) for bits in faiss.vector_to_array(quantizer.nbits)]


def _index_bytes(
    faiss: Any,
    index: Any,
    codes: NDArray,
    sizes: Sequence[int],
    vectors: NDArray[np.float32] | None,
) -> NDArray[np.uint8]:
    """Return the rows that `add_sa_codes` takes: list number (inverted file), codes, norm."""
    stores_norms = index.rq.search_type == faiss.AdditiveQuantizer.ST_norm_float
    inverted = isinstance(index, faiss.IndexIVF)
    packed = pack_codes(codes, sizes)
    if stores_norms or (inverted and vectors is None):
        padding = np.zeros((len(packed), index.code_size - packed.shape[1]), dtype=np.uint8)
        decoded = index.rq.decode(np.hstack([packed, padding]))
        vectors = decoded if vectors is None else vectors
    if stores_norms:
        squares = np.square(decoded, dtype=np.float64).sum(axis=1).astype(np.float32)
        entries = [*codes.T.astype(np.uint64), squares.view(np.uint32)]
        packed = pack_codes(np.column_stack(entries), [*sizes, _NORM_ENTRIES])
    if not inverted:
        return packed
    lists = index.quantizer.search(np.ascontiguousarray(vectors, dtype=np.float32), 1)[1]
    numbers = lists.astype("<i8").view(np.uint8)[:, : index.coarse_code_size()]
    return np.hstack([numbers, packed])


def _fold(
    faiss: Any, transform: Any, tables: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """Bring the tables behind y = A x + b back to the space of x: Aᵀ (y − b).

    ‖A x + b − y‖² and ‖x − Aᵀ (y − b)‖² differ by ‖x‖² − ‖A x‖² whatever y, where the rows of A are
    orthonormal, so that encoding finds the same codes.
    """
    if not isinstance(transform, faiss.LinearTransform):
        raise ConfigError(
            f"from_faiss: a {type(transform).__name__} in front of the quantizer cannot be folded "
            "into its codebooks. Pass index.index, and transform the vectors yourself."
        )
    matrix = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
    matrix = matrix.astype(np.float64)
    error = np.abs(matrix @ matrix.T - np.eye(len(matrix))).max()
    if not error <= _ORTHONORMAL:
        raise ConfigError(
            f"from_faiss: the {type(transform).__name__} in front of the quantizer changes "
            f"distances (its rows are off orthonormal by {error:.2g}), so that its codebooks mean "
            "nothing before it. Pass index.index, and transform the vectors yourself."
        )
    shift = faiss.vector_to_array(transform.b) if transform.have_bias else 0.0
    first = tables[0] - shift
    return [(table @ matrix).astype(np.float32) for table in (first, *tables[1:])]
