"""Codes as few bytes as a model allows: a range coder that takes any table of probabilities.

The arithmetic is that of the `constriction` package; here are the bytes around it and the checks.
Encoder and decoder must be given the same probabilities to the last bit: a model whose rounding
depends on the batch, the device or the number of threads has to run in the same way on both sides.
"""

import numpy as np
from constriction import stream
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import DataError, ShapeError

__all__ = ["CodeDecoder", "CodeEncoder", "code_bits"]

# Probabilities are rounded to multiples of this, so that no code costs more than 24 bits.
_SMALLEST = 2.0**-24


class CodeEncoder:
    """Appends codes to a stream, first in, first out.

    Example:
        >>> encoder = CodeEncoder()
        >>> encoder.encode([1, 0, 1], probabilities=[0.25, 0.75])
        >>> stream = encoder.to_bytes()
        >>> CodeDecoder(stream).decode([0.25, 0.75], count=3)
        array([1, 0, 1])

    References:
        Martin, "Range encoding: an algorithm for removing redundancy from a digitised message",
        Video and Data Recording Conference, 1979.
        Bamler, "Understanding Entropy Coding With Asymmetric Numeral Systems (ANS): a
        Statistician's Perspective", 2022, https://arxiv.org/abs/2201.01741 (`constriction`).
    """

    def __init__(self) -> None:
        self._coder = stream.queue.RangeEncoder()

    def encode(self, codes: ArrayLike, probabilities: ArrayLike) -> None:
        """Append codes.

        Args:
            codes: Integers in [0, K), shape (N,).
            probabilities: Of each entry, shape (N, K), or (K,) where all codes share one table;
                floating point, not negative, scaled as they come. An entry of probability 0 can
                still be coded: it costs 24 bits.

        Raises:
            ShapeError: If the shapes do not fit each other.
            DataError: If a code is no entry of the table, or the table holds no probabilities.
        """
        table = _check_table("CodeEncoder.encode", probabilities)
        values = np.asarray(codes)
        if values.ndim != 1 or (table.ndim == 2 and len(values) != len(table)):
            raise ShapeError(
                f"CodeEncoder.encode: codes must have shape (N,) for probabilities (N, K) or (K,); "
                f"got {values.shape} for {table.shape}. Flatten both alike."
            )
        if not len(values):
            return
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= table.shape[-1]:
            raise DataError(
                f"CodeEncoder.encode: codes must be integers from 0 to {table.shape[-1] - 1}; got "
                f"{values.dtype} from {values.min()} to {values.max()}. Pass a table for them."
            )
        self._coder.encode(values.astype(np.int32), *_model(table))

    def to_bytes(self) -> bytes:
        """Return the stream so far; at most 64 bits over what its codes cost."""
        words = self._coder.get_compressed().astype("<u4").tobytes()
        return words.rstrip(b"\0")  # the decoder reads zeros beyond the end


class CodeDecoder:
    """Reads codes in the order they were encoded, given the same probabilities.

    Args:
        encoded: What `CodeEncoder.to_bytes` returned.
    """

    def __init__(self, encoded: bytes) -> None:
        padded = encoded + bytes(-len(encoded) % 4)
        words = np.frombuffer(padded, dtype="<u4").astype(np.uint32)
        self._coder = stream.queue.RangeDecoder(words)

    def decode(self, probabilities: ArrayLike, *, count: int | None = None) -> NDArray[np.int64]:
        """Read the next codes.

        Args:
            probabilities: Shape (N, K) for N codes, or (K,) with `count`.
            count: Codes to read with one shared table.

        Returns:
            Codes, shape (N,) or (count,), int64. A stream that was made with other probabilities
            gives codes all the same, wrong ones: keep a checksum beside it.

        Raises:
            ShapeError: If probabilities have neither of these shapes.
            DataError: If the table holds no probabilities, or the stream cannot be of this coder.
        """
        table = _check_table("CodeDecoder.decode", probabilities)
        if (table.ndim == 1) != (count is not None):
            raise ShapeError(
                f"CodeDecoder.decode: count={count} goes with probabilities of shape (K,); got "
                f"{table.shape}. Pass one table and a count, or a table for each code."
            )
        if 0 in (count, len(table)):
            return np.empty(0, np.int64)
        model = _model(table)
        try:
            codes = (
                self._coder.decode(*model) if count is None else self._coder.decode(*model, count)
            )
        except (AssertionError, ValueError) as error:
            raise DataError(
                f"CodeDecoder.decode: the stream does not fit these probabilities; got: {error} "
                f"Decode with the model and settings that encoded it."
            ) from None
        return np.asarray(codes, np.int64)


def code_bits(codes: ArrayLike, probabilities: ArrayLike) -> float:
    """Return what a model spends on codes, −Σ log2 p, with no p under 2^-24.

    Args:
        codes: Integers in [0, K), shape (N,).
        probabilities: Shape (N, K) or (K,), each row summing to one.
    """
    values, table = np.asarray(codes, np.int64), np.asarray(probabilities, np.float64)
    chosen = table[values] if table.ndim == 1 else table[np.arange(len(values)), values]
    return float(-np.log2(np.maximum(chosen, _SMALLEST)).sum())


def _check_table(where: str, probabilities: ArrayLike) -> NDArray:
    table = np.asarray(probabilities)
    if table.dtype.kind != "f":
        raise DataError(
            f"{where}: probabilities must be floating point; got {table.dtype}. Divide counts by "
            f"their sum."
        )
    if table.ndim not in (1, 2) or table.shape[-1] == 0:
        raise ShapeError(
            f"{where}: probabilities must have shape (N, K) or (K,); got {table.shape}."
        )
    if not (np.isfinite(table).all() and (table >= 0).all() and (table.sum(-1) > 0).all()):
        raise DataError(
            f"{where}: probabilities must be finite, not negative and not all 0; got others. Pass "
            f"the softmax of the logits."
        )
    if table.shape[-1] == 1:  # the coder wants two entries at least; the second is never coded
        table = np.concatenate([table, np.zeros_like(table)], axis=-1)
    return np.ascontiguousarray(table, np.float32 if table.dtype.itemsize < 8 else np.float64)


def _model(table: NDArray) -> tuple:
    """Return the coder's arguments that say how probable each entry is."""
    categorical = stream.model.Categorical
    if table.ndim == 1:
        return (categorical(table, perfect=False),)
    return categorical(perfect=False), table
