"""A quantizer at work on vectors that come in chunks: what the commands of `quantize` share."""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rqtoolkit.cli.console import message
from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.streaming import RateDistortionSums
from rqtoolkit.io.vectors import VectorTable
from rqtoolkit.quantizers import ResidualQuantizer

__all__ = [
    "chunk_rows",
    "decode_chunks",
    "encode_chunks",
    "fit_quantizer",
    "load_quantizer",
    "measure",
    "row_chunks",
    "training_rows",
]

_CHUNK_ELEMENTS = 2**24  # 64 MiB of float32 at a time
_TRAIN_ROWS_PER_CODE = 1024
_TRAIN_ELEMENTS = 2**30  # 4 GiB of float32


def training_rows(
    vectors: VectorTable, codebook_size: int, train_rows: int | None, seed: int
) -> NDArray[np.float32]:
    """Read the vectors to fit on: `train_rows`, or 1024 for each codeword within 4 GiB.

    Args:
        vectors: Where they lie.
        codebook_size: Entries of the largest level.
        train_rows: Rows to draw; None for the default.
        seed: Fixes the draw.

    Raises:
        DataError: If a value is NaN, infinite, or beyond float32.
    """
    if min(vectors.rows, train_rows or vectors.rows) < codebook_size:
        raise DataError(
            f"{vectors.path} offers {min(vectors.rows, train_rows or vectors.rows)} vectors to fit "
            f"on, fewer than the {codebook_size} codes of a level. Choose smaller codebooks."
        )
    if train_rows is None:
        train_rows = min(_TRAIN_ROWS_PER_CODE * codebook_size, _TRAIN_ELEMENTS // vectors.dim)
        if train_rows < vectors.rows:
            message(
                f"Fitting on {train_rows} of {vectors.rows} vectors; --train-rows sets how many"
            )
    return vectors.sample(train_rows, seed=seed)


def fit_quantizer(
    x: NDArray[np.float32],
    depth: int,
    codebook_size: int | Sequence[int],
    *,
    shared_codebook: bool,
    rounds: int,
    starts: int,
    beam: int,
    seed: int,
    progress: Progress,
) -> ResidualQuantizer:
    """Return a quantizer fitted on all rows of x, shape (N, dim)."""
    quantizer = ResidualQuantizer(x.shape[1], depth, codebook_size, shared_codebook=shared_codebook)
    return quantizer.fit(
        x, rounds=rounds, starts=starts, beam=beam, max_rows=len(x), seed=seed, progress=progress
    )


def load_quantizer(model: Path, vectors: VectorTable | None = None) -> ResidualQuantizer:
    """Read a quantizer, and check that it fits the vectors.

    Raises:
        ArtifactError: If the file is missing, damaged or foreign.
        ShapeError: If the vectors have another dimension.
    """
    quantizer = ResidualQuantizer.load(model)
    if vectors is not None and vectors.dim != quantizer.dim:
        raise ShapeError(
            f"{vectors.path} has dimension {vectors.dim} but {model} was fitted for "
            f"{quantizer.dim}. Name the data or the model that fit."
        )
    return quantizer.freeze()


def row_chunks(x: NDArray[np.float32], rows: int) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of a matrix in order, at most `rows` at a time."""
    return (x[start : start + rows] for start in range(0, len(x), rows))


def chunk_rows(quantizer: ResidualQuantizer) -> int:
    """Return how many vectors fit the budget with their partial sums."""
    return max(1, _CHUNK_ELEMENTS // (quantizer.dim * (quantizer.depth + 1)))


def encode_chunks(
    quantizer: ResidualQuantizer,
    chunks: Iterable[NDArray[np.float32]],
    rows: int,
    progress: Progress,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield each chunk of vectors with its codes; progress is told of `rows` in all."""
    done = 0
    for chunk in chunks:
        yield chunk, quantizer.encode(torch.from_numpy(chunk)).numpy()
        done += len(chunk)
        progress("encode", done, rows)


def decode_chunks(
    quantizer: ResidualQuantizer,
    chunks: Iterable[NDArray[np.int64]],
    rows: int,
    progress: Progress,
) -> Iterator[NDArray[np.float32]]:
    """Yield the vectors of each chunk of codes; progress is told of `rows` in all."""
    done = 0
    for chunk in chunks:
        yield quantizer.decode(torch.from_numpy(chunk)).numpy()
        done += len(chunk)
        progress("decode", done, rows)


def measure(
    quantizer: ResidualQuantizer,
    chunks: Iterable[NDArray[np.float32]],
    rows: int,
    progress: Progress,
) -> RateDistortionSums:
    """Return the rate-distortion sums over all chunks; progress is told of `rows` in all."""
    return reduce(
        add,
        (
            RateDistortionSums.of(
                chunk,
                codes,
                quantizer.partial_sums(torch.from_numpy(codes)).numpy(),
                quantizer.codebook_sizes,
            )
            for chunk, codes in encode_chunks(quantizer, chunks, rows, progress)
        ),
    )
