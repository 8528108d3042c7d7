"""A quantizer at work on files in chunks: what the commands of `quantize` share."""

import time
from collections.abc import Iterable, Iterator
from functools import reduce
from inspect import Parameter, signature
from itertools import chain
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rqtoolkit.errors import ConfigError, ShapeError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.streaming import RateDistortionSums
from rqtoolkit.io.codes import CodeTable, PackedTable, open_codes
from rqtoolkit.io.compressed_codes import CompressedCodes, open_compressed
from rqtoolkit.io.vectors import VectorTable
from rqtoolkit.quantizers import Quantizer
from rqtoolkit.quantizers import load_quantizer as load_any

__all__ = [
    "COMPRESSED",
    "Encoder",
    "check_dim",
    "chunk_rows",
    "decode_chunks",
    "decoded",
    "load_quantizer",
    "measure",
    "open_code_file",
    "row_chunks",
    "sums_of",
]

COMPRESSED = ".rqcodes"
"""Suffix of compressed files of codes."""
_MOST_ENTRIES = 2**24  # of a level; only binary and scalar quantizers, without tables, have more

_CHUNK_ELEMENTS = 2**24  # 64 MiB of float32 at a time
_WARM_UP_ROWS = 4096


def load_quantizer(
    model: Path, vectors: VectorTable | None = None, *, device: str = "cpu"
) -> Quantizer:
    """Read a quantizer of whatever kind onto a device, and check that it fits the vectors.

    Raises:
        ArtifactError: If the file is missing, damaged or foreign.
        ShapeError: If the vectors have another dimension.
        ConfigError: If its codebooks are too large for counting their entries.
    """
    quantizer = load_any(model, device=device)
    largest = max(quantizer.codebook_sizes)
    if largest > _MOST_ENTRIES:
        raise ConfigError(
            f"{model} has codebooks of {largest} entries, more than the {_MOST_ENTRIES} that "
            "rqtool counts. Encode and decode with it in Python."
        )
    if vectors is not None:
        check_dim(quantizer, vectors)
    return quantizer.freeze()


def check_dim(quantizer: Quantizer, vectors: VectorTable) -> None:
    """Refuse vectors of another dimension.

    Raises:
        ShapeError: If they are.
    """
    if vectors.dim != quantizer.dim:
        raise ShapeError(
            f"{vectors.path} has dimension {vectors.dim} but the model was fitted for "
            f"{quantizer.dim}. Name the data or the model that fit."
        )


def open_code_file(
    path: Path,
    quantizer: Quantizer | None,
    *,
    packed: bool = False,
    key: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
) -> CodeTable | PackedTable | CompressedCodes:
    """Open a file of codes of any kind; arguments and errors as in `io.codes.open_codes`."""
    if path.suffix.lower() != COMPRESSED:
        return open_codes(
            path,
            codebook_sizes=None if quantizer is None else quantizer.codebook_sizes,
            packed=packed,
            key=key,
            column=column,
            id_column=id_column,
        )
    options = {"--packed": packed, "--key": key, "--column": column, "--id-column": id_column}
    for option, value in options.items():
        if value:
            raise ConfigError(f"{option} is for other files of codes; got {path}. Leave it out.")
    return open_compressed(path)


def row_chunks(x: NDArray[np.float32], rows: int) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of a matrix in order, at most `rows` at a time."""
    return (x[start : start + rows] for start in range(0, len(x), rows))


def chunk_rows(quantizer: Quantizer) -> int:
    """Return how many vectors fit the budget with their codes."""
    return max(1, _CHUNK_ELEMENTS // (quantizer.dim + 2 * len(quantizer.codebook_sizes)))


class Encoder:
    """Encodes chunk after chunk, and times it.

    Args:
        quantizer: The quantizer.
        progress: Told of the rows done.
        settings: Of `quantizer.encode`; None and 0 leave its own.

    Raises:
        ConfigError: If this kind of quantizer does not know a setting.

    Attributes:
        rows: Vectors encoded.
        seconds: Time that took, start-up, reading and writing left out.
    """

    def __init__(self, quantizer: Quantizer, progress: Progress, **settings: Any) -> None:
        self.quantizer = quantizer
        self.rows, self.seconds = 0, 0.0
        self._progress = progress
        self._settings = {name: value for name, value in settings.items() if value}
        known = signature(quantizer.encode).parameters
        open_ended = any(one.kind is Parameter.VAR_KEYWORD for one in known.values())
        for name in self._settings:
            if name not in known and not open_ended:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is nothing that a {type(quantizer).__name__} "
                    "encodes with. Leave it out."
                )

    def __call__(
        self, chunks: Iterable[NDArray[np.float32]], rows: int
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield each chunk of vectors with its codes; progress is told of `rows` in all."""
        done = 0
        for chunk in chunks:
            if not self.rows:  # compiled loops are loaded at their first use
                self._encode(chunk[: min(_WARM_UP_ROWS, max(1, len(chunk) // 16))])
            start = time.perf_counter()
            codes = self._encode(chunk)
            self.seconds += time.perf_counter() - start
            self.rows += len(chunk)
            done += len(chunk)
            yield chunk, codes
            self._progress("encode", done, rows)

    def _encode(self, chunk: NDArray[np.float32]) -> NDArray[np.int64]:
        return self.quantizer.encode(_moved(chunk, self.quantizer), **self._settings).cpu().numpy()


def decoded(quantizer: Quantizer, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the vectors that codes stand for."""
    return quantizer.decode(_moved(codes, quantizer)).cpu().numpy()


def _moved(array: NDArray, quantizer: Quantizer) -> torch.Tensor:
    """Return an array as a tensor where the quantizer is."""
    tensors = chain(quantizer.buffers(), quantizer.parameters())
    return torch.from_numpy(array).to(next(tensors).device)


def decode_chunks(
    quantizer: Quantizer, chunks: Iterable[NDArray[np.int64]], rows: int, progress: Progress
) -> Iterator[NDArray[np.float32]]:
    """Yield the vectors of each chunk of codes; progress is told of `rows` in all."""
    done = 0
    for chunk in chunks:
        yield decoded(quantizer, chunk)
        done += len(chunk)
        progress("decode", done, rows)


def measure(
    encoder: Encoder, chunks: Iterable[NDArray[np.float32]], rows: int
) -> RateDistortionSums:
    """Return the rate-distortion sums over all chunks."""
    return reduce(add, (sums_of(encoder.quantizer, *pair) for pair in encoder(chunks, rows)))


@torch.no_grad()
def sums_of(
    quantizer: Quantizer, x: NDArray[np.float32], codes: NDArray[np.int64]
) -> RateDistortionSums:
    """Return the rate-distortion sums of vectors and their codes, level by level."""
    step = max(1, _CHUNK_ELEMENTS // (quantizer.dim * (quantizer.depth + 1)))
    return reduce(
        add,
        (
            RateDistortionSums.of(
                x[start : start + step],
                codes[start : start + step],
                _partial_sums(quantizer, codes[start : start + step]),
                quantizer.codebook_sizes,
            )
            for start in range(0, len(x), step)
        ),
    )


def _partial_sums(quantizer: Quantizer, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return what the first 1, 2, … levels decode to, shape (N, depth, dim)."""
    partial_sums: Any = getattr(quantizer, "partial_sums", None)
    if partial_sums is not None:
        return partial_sums(_moved(codes, quantizer)).cpu().numpy()
    per_level = len(quantizer.codebook_sizes) // quantizer.depth
    ends = range(per_level, codes.shape[1] + 1, per_level)
    return np.stack([decoded(quantizer, codes[:, :end]) for end in ends], axis=1)
