"""How codes are stored: the smallest fitting integer, or packed bits in the layout of faiss."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ConfigError, DataError, ShapeError

__all__ = ["code_bits", "pack_codes", "smallest_dtype", "unpack_codes"]

_CHUNK_ROWS = 2**16


def code_bits(codebook_sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the whole bits each level takes, ceil(log2 codebook_size); a single entry takes none.

    Raises:
        ConfigError: If there is no level or a size is below 1.
    """
    if len(codebook_sizes) == 0 or min(codebook_sizes) < 1:
        raise ConfigError(
            f"codes: codebook_sizes={tuple(codebook_sizes)} has to name sizes from 1 on."
        )
    return tuple((int(size) - 1).bit_length() for size in codebook_sizes)


def smallest_dtype(codebook_sizes: Sequence[int]) -> np.dtype:
    """Return the smallest unsigned integer type that holds a code of any level.

    Raises:
        ConfigError: If there is no level or a size is below 1.
    """
    bits = max(code_bits(codebook_sizes))
    return np.dtype(next(f"u{width}" for width in (1, 2, 4, 8) if 8 * width >= bits))


def pack_codes(codes: ArrayLike, codebook_sizes: Sequence[int]) -> NDArray[np.uint8]:
    """Pack codes into whole bytes a vector, as faiss lays them out.

    Level 0 first, least significant bit first, no gaps between levels, each vector padded with
    zeros to a byte. Each level takes `code_bits` bits.

    Args:
        codes: Codes, shape (..., depth), integers.
        codebook_sizes: Entries of each level, length depth.

    Returns:
        Bytes, shape (..., ceil(sum of bits / 8)).

    Raises:
        ShapeError: If the last axis is not as long as codebook_sizes.
        DataError: If the codes are not integers or leave [0, codebook_size).
    """
    if isinstance(codes, torch.Tensor):
        codes = codes.detach().cpu().numpy()
    codes = np.asarray(codes)
    bits = code_bits(codebook_sizes)
    if codes.ndim == 0 or codes.shape[-1] != len(bits):
        raise ShapeError(
            f"pack_codes: codes has to have shape (..., {len(bits)}), one code for each of "
            f"codebook_sizes; got {codes.shape}."
        )
    if codes.dtype.kind not in "iu":
        raise DataError(f"pack_codes: codes have to be integers; got dtype {codes.dtype}.")
    flat = codes.reshape(-1, len(bits))
    if flat.size and (flat.min() < 0 or (flat.max(axis=0) >= np.asarray(codebook_sizes)).any()):
        raise DataError(
            f"pack_codes: codes have to be in [0, codebook_size) of {tuple(codebook_sizes)}; "
            f"got {flat.min()} to {flat.max(axis=0).tolist()}."
        )
    packed = np.empty((len(flat), -(-sum(bits) // 8)), dtype=np.uint8)
    for start in range(0, len(flat), _CHUNK_ROWS):
        rows = flat[start : start + _CHUNK_ROWS].astype(np.uint64)
        columns = [
            (rows[:, level, None] >> np.arange(width, dtype=np.uint64)).astype(np.uint8) & 1
            for level, width in enumerate(bits)
        ]
        packed[start : start + _CHUNK_ROWS] = np.packbits(
            np.concatenate(columns, axis=1), axis=1, bitorder="little"
        )
    return packed.reshape(*codes.shape[:-1], packed.shape[1])


def unpack_codes(packed: ArrayLike, codebook_sizes: Sequence[int]) -> NDArray[np.unsignedinteger]:
    """Invert `pack_codes`.

    Args:
        packed: Bytes, shape (..., ceil(sum of bits / 8)), uint8.
        codebook_sizes: Entries of each level.

    Returns:
        Codes, shape (..., depth), of `smallest_dtype`.

    Raises:
        ShapeError: If the last axis is not that many bytes.
        DataError: If packed is not uint8, or a code leaves [0, codebook_size).
    """
    packed = np.asarray(packed)
    bits = code_bits(codebook_sizes)
    width = -(-sum(bits) // 8)
    if packed.dtype != np.uint8:
        raise DataError(f"unpack_codes: packed has to be uint8; got {packed.dtype}.")
    if packed.ndim == 0 or packed.shape[-1] != width:
        raise ShapeError(
            f"unpack_codes: packed has to have shape (..., {width}), the bytes that "
            f"{sum(bits)} bits take; got {packed.shape}."
        )
    flat = packed.reshape(math.prod(packed.shape[:-1]), width)  # -1 fails where width is 0
    ends = np.cumsum(bits)
    dtype = smallest_dtype(codebook_sizes)
    codes = np.zeros((len(flat), len(bits)), dtype=dtype)
    for start in range(0, len(flat), _CHUNK_ROWS):
        digits = np.unpackbits(flat[start : start + _CHUNK_ROWS], axis=1, bitorder="little")
        for level, (end, count) in enumerate(zip(ends, bits, strict=True)):
            powers = np.left_shift(np.uint64(1), np.arange(count, dtype=np.uint64))
            codes[start : start + _CHUNK_ROWS, level] = digits[:, end - count : end] @ powers
    if codes.size and (codes.max(axis=0) >= np.asarray(codebook_sizes)).any():
        raise DataError(
            f"unpack_codes: codes have to be below codebook_size of {tuple(codebook_sizes)}; "
            f"got up to {codes.max(axis=0).tolist()}. Check the sizes against the file."
        )
    return codes.reshape(*packed.shape[:-1], len(bits))
