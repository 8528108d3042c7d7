"""faiss indexes filled chunk by chunk."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.cli.quantize.streams import Encoder, chunk_rows
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.codes import CodeTable, PackedTable
from rqtoolkit.io.compressed_codes import CompressedCodes
from rqtoolkit.io.faiss_index import add_codes
from rqtoolkit.io.vectors import VectorTable

__all__ = ["empty_index", "fill_index"]

_ROWS_PER_LIST = 256  # as `to_faiss`
_SAMPLE_ELEMENTS = 2**30  # 4 GiB of float32

Source = VectorTable | CodeTable | PackedTable | CompressedCodes


def empty_index(
    quantizer: Any, source: Source | None, *, lists: int | None, seed: int, **settings: Any
) -> Any:
    """Return a faiss index of a quantizer without vectors, its lists placed on a sample of them.

    Args:
        quantizer: With `to_faiss`.
        source: Vectors or codes that are to be added.
        lists: Of an inverted file; None for an exhaustive index.
        seed: Fixes sample and lists.
        settings: As for `to_faiss`, with its errors.
    """
    if lists is None or source is None:
        return quantizer.to_faiss(lists=lists, **settings)
    rows = min(_ROWS_PER_LIST * lists, _SAMPLE_ELEMENTS // quantizer.dim)
    if isinstance(source, VectorTable):
        x = source.sample(rows, seed=seed)
        # Any codes will do: lists are placed on the vectors, and all codes go again.
        codes = np.zeros((len(x), len(quantizer.codebook_sizes)), dtype=np.int64)
        index = quantizer.to_faiss(x, codes=codes, lists=lists, seed=seed, **settings)
    else:
        codes = _sampled(source.chunks(chunk_rows(quantizer)), source.rows, rows, seed)
        index = quantizer.to_faiss(codes=codes, lists=lists, seed=seed, **settings)
    index.reset()
    return index


def fill_index(index: Any, source: Source, encoder: Encoder, progress: Progress) -> None:
    """Add all vectors or codes of a file to an index."""
    rows = chunk_rows(encoder.quantizer)
    if isinstance(source, VectorTable):
        for x, codes in encoder(source.chunks(rows), source.rows):
            add_codes(index, codes, x)
        return
    done = 0
    for codes in source.chunks(rows):
        add_codes(index, codes)
        done += len(codes)
        progress("add", done, source.rows)


def _sampled(
    chunks: Iterable[NDArray[np.int64]], total: int, rows: int, seed: int
) -> NDArray[np.int64]:
    """Return `rows` of all rows, drawn evenly without repetition, in order."""
    wanted = np.arange(total)
    if rows < total:
        wanted = np.sort(np.random.default_rng(seed).choice(total, rows, replace=False))
    parts, done = [], 0
    for chunk in chunks:
        first, end = np.searchsorted(wanted, [done, done + len(chunk)])
        parts.append(chunk[wanted[first:end] - done])
        done += len(chunk)
    return np.concatenate(parts)
