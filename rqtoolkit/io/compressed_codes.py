"""Compressed files of codes: written and read in chunks, exact, about as small as a model allows.

A file is

    "RC" 1 | check of the file | check of the codes | rows | sizes | stream [| stream …]

with a CRC-32 over all that follows it, two bytes of the CRC-32 of the codes, and numbers as
variable-length integers: 12 bytes before the stream for up to 127 rows, 15 for ten million. Sizes
are runs of equal ones. A stream ends with the block that makes it eight million codes, and all but
the last have their length before them. Ids are not kept: they belong beside the file.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import check_sizes
from rqtoolkit.functional.code_model import MOST_ENTRIES, CodeModel, block_rows
from rqtoolkit.functional.entropy_coding import CodeDecoder, CodeEncoder
from rqtoolkit.io.atomic import atomic_path

__all__ = ["CompressedCodes", "open_compressed", "write_compressed"]

_MAGIC, _VERSION = b"RC", 1
_FILE_CHECK = slice(3, 7)
_CODES_CHECK = slice(7, 9)
_START = 9  # of the numbers
_STREAM_CODES = 2**23
_MOST_BYTES = 9  # of a number


def write_compressed(
    path: str | Path,
    chunks: Iterable[NDArray],
    *,
    rows: int,
    codebook_sizes: Sequence[int],
) -> float:
    """Write codes as they come to a compressed file, atomically.

    Memory is that of a block of a million codes, of the bytes of eight million, and of the model's
    frequencies: at most 32 MiB a level, half a MiB for 256 entries.

    Args:
        path: File to write, usually `*.rqcodes`; an existing one is replaced.
        chunks: Arrays of shape (n, depth) that add up to `rows`; for one array pass `[codes]`.
        rows: Number of vectors; 0 makes a file without codes.
        codebook_sizes: Entries of each level.

    Returns:
        What the model spends on the codes, in bits. The file is larger by about 20 bytes.

    Raises:
        ArtifactError: If the folder is missing.
        ConfigError: If a size is below 1 or above 65,536, or there is none, or rows is negative.
        ShapeError: If the chunks are not (n, depth) or do not add up to `rows`.
        DataError: If the codes are not integers or leave [0, codebook_size).
    """
    sizes = check_sizes("write_compressed", list(codebook_sizes), max(1, len(codebook_sizes)))
    if max(sizes) > MOST_ENTRIES:
        raise ConfigError(
            f"write_compressed: codebook_sizes must be at most {MOST_ENTRIES}; got {max(sizes)}. "
            f"Write such codes to .npy."
        )
    if rows < 0:
        raise ConfigError(f"write_compressed: rows={rows} must be at least 0.")
    depth = len(sizes)
    model, encoder = CodeModel(sizes), CodeEncoder()
    done = start = check = 0
    bits = 0.0
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        file.write(bytes(_START) + _number(rows) + _pack_sizes(sizes))
        blocks = _regrouped(
            _checked(chunks, rows, sizes), lambda done: min(block_rows(done, depth), rows - done)
        )
        for block in blocks:
            bits += model.encode(encoder, block)
            check = _codes_check(block, check)
            done += len(block)
            if (done - start) * depth >= _STREAM_CODES and done < rows:
                stream = encoder.to_bytes()
                file.write(_number(len(stream)) + stream)
                encoder, start = CodeEncoder(), done
        file.write(encoder.to_bytes())
        file.seek(_CODES_CHECK.start)
        file.write(_last_bytes(check))
        file_check = _file_check(file)
        file.seek(0)
        file.write(_MAGIC + bytes([_VERSION]) + file_check)
    return bits


class CompressedCodes:
    """Codes of a compressed file, read like those of any other file of codes.

    Attributes:
        path: Where they lie.
        rows: Number of vectors they stand for.
        depth: Codes a vector.
        codebook_sizes: Entries of each level.
        ids: None; the format keeps none.
    """

    ids = None

    def __init__(
        self, path: Path, rows: int, codebook_sizes: tuple[int, ...], start: int, check: bytes
    ) -> None:
        self.path, self.rows, self.codebook_sizes = path, rows, codebook_sizes
        self.depth = len(codebook_sizes)
        self._start, self._check = start, check

    def chunks(self, rows: int) -> Iterator[NDArray[np.int64]]:
        """Yield all codes in order, shape (n, depth) with n at most `rows`.

        Raises:
            ArtifactError: If the codes turn out not to be those that were written.
        """
        return _regrouped(self._blocks(), lambda done: min(rows, self.rows - done))

    def _blocks(self) -> Iterator[NDArray[np.int64]]:
        """Decode block by block, opening the next stream where one ends."""
        model, decoder = CodeModel(self.codebook_sizes), CodeDecoder(b"")
        done = end = check = 0  # end: of the stream, in rows
        with self.path.open("rb") as file:
            file.seek(self._start)
            while done < self.rows:
                if done == end:
                    end = self._stream_end(done)
                    length = -1 if end == self.rows else _read_number(file)
                    decoder = CodeDecoder(file.read(length))
                size = min(block_rows(done, self.depth), self.rows - done)
                try:
                    block = model.decode(decoder, size)
                except DataError as error:
                    raise self._wrong(str(error)) from error
                check = _codes_check(block, check)
                done += size
                if done == self.rows and _last_bytes(check) != self._check:
                    raise self._wrong("codes that do not match their checksum.")
                yield block

    def _stream_end(self, done: int) -> int:
        """Return the rows after the stream that starts with row `done`."""
        end = done
        while end < self.rows and (end - done) * self.depth < _STREAM_CODES:
            end += block_rows(end, self.depth)
        return min(end, self.rows)

    def _wrong(self, fact: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path} cannot be decompressed here; got: {fact} Decompress it with the version "
            f"of rqtoolkit and constriction that wrote it."
        )


def open_compressed(
    path: str | Path, *, codebook_sizes: Sequence[int] | None = None
) -> CompressedCodes:
    """Open a file that `write_compressed` wrote; all its bytes are checked first.

    Args:
        path: File to read.
        codebook_sizes: Entries of each level of the quantizer that the codes have to fit; codes may
            stop at an earlier level.

    Raises:
        ArtifactError: If the file is missing, damaged, truncated, foreign or of an unknown version.
        ShapeError: If the codes have more levels than codebook_sizes.
        DataError: If their codebooks have other sizes.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} is no file. Check the path.")
    with path.open("rb") as file:
        head = file.read(_START)
        if head[:2] != _MAGIC:
            raise ArtifactError(
                f"{path} is no compressed file of codes; got {head[:2]!r} as its first bytes. Name "
                f"a file that `rqtool quantize compress` wrote."
            )
        if len(head) > 2 and head[2] != _VERSION:
            raise ArtifactError(
                f"{path} has an unknown version; got {head[2]}, this rqtoolkit reads {_VERSION}. "
                f"Update rqtoolkit."
            )
        if len(head) < _START or _file_check(file) != head[_FILE_CHECK]:
            raise ArtifactError(
                f"{path} is damaged or truncated; got bytes that do not match their checksum. "
                f"Write or copy it again."
            )
        file.seek(_START)
        rows = _read_number(file)
        sizes = _read_sizes(file)
        start = file.tell()
    if codebook_sizes is not None:
        _check_fit(path, sizes, tuple(codebook_sizes))
    return CompressedCodes(path, rows, sizes, start, head[_CODES_CHECK])


def _check_fit(path: Path, sizes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if len(sizes) > len(expected):
        raise ShapeError(
            f"{path}: codes have depth {len(sizes)} but the quantizer has depth {len(expected)}. "
            f"Name the model that made them."
        )
    if sizes != expected[: len(sizes)]:
        raise DataError(
            f"{path}: codes are of codebooks of sizes {sizes}; got a quantizer of {expected}. "
            f"Name the model that made them."
        )


def _checked(chunks: Iterable[NDArray], rows: int, sizes: tuple[int, ...]) -> Iterator[NDArray]:
    done = 0
    for chunk in map(np.asarray, chunks):
        if chunk.ndim != 2 or chunk.shape[1] != len(sizes):
            raise ShapeError(
                f"write_compressed: chunks must have shape (n, {len(sizes)}), one code for each of "
                f"codebook_sizes; got {chunk.shape}."
            )
        if chunk.dtype.kind not in "iu":
            raise DataError(f"write_compressed: codes must be integers; got {chunk.dtype}.")
        if len(chunk) and (chunk.min() < 0 or (chunk.max(axis=0) >= np.asarray(sizes)).any()):
            raise DataError(
                f"write_compressed: codes must be in [0, codebook_size) of {sizes}; got "
                f"{chunk.min()} to {chunk.max(axis=0).tolist()}. Name the model that made them."
            )
        done += len(chunk)
        if done > rows:
            break
        yield chunk
    if done != rows:
        raise ShapeError(
            f"write_compressed: rows={rows} must be what the chunks add up to; got "
            f"{done}{' or more' * (done > rows)}."
        )


def _regrouped(
    chunks: Iterable[NDArray], wanted: Callable[[int], int]
) -> Iterator[NDArray[np.int64]]:
    """Cut and join chunks, so that after `done` rows come `wanted(done)`."""
    done = filled = 0
    piece = np.empty((0, 0), np.int64)
    for rest in chunks:
        while len(rest):
            if not filled:
                piece = np.empty((wanted(done), rest.shape[1]), np.int64)
            part = rest[: len(piece) - filled]
            piece[filled : filled + len(part)] = part
            filled, rest = filled + len(part), rest[len(part) :]
            if filled == len(piece):
                yield piece
                done, filled = done + filled, 0


def _codes_check(block: NDArray, before: int) -> int:
    return zlib.crc32(np.ascontiguousarray(block, "<u2").data, before)


def _last_bytes(check: int) -> bytes:
    return (check & 0xFFFF).to_bytes(2, "little")


def _file_check(file: BinaryIO) -> bytes:
    """Return the CRC-32 of what follows its place."""
    file.seek(_FILE_CHECK.stop)
    check = 0
    while part := file.read(2**20):
        check = zlib.crc32(part, check)
    return check.to_bytes(4, "little")


def _pack_sizes(sizes: Sequence[int]) -> bytes:
    """Return runs of equal sizes: twice the length, plus 1 for the last one, then the size.

    Sizes are mostly powers of two, whose exponent takes one byte; others follow after 64.
    """
    runs = [(size, len(list(run))) for size, run in groupby(sizes)]
    packed = b""
    for position, (size, length) in enumerate(runs):
        exponent = size.bit_length() - 1
        packed += _number(2 * length + (position == len(runs) - 1))
        packed += _number(exponent if size == 1 << exponent else 64 + size)
    return packed


def _read_sizes(file: BinaryIO) -> tuple[int, ...]:
    sizes: list[int] = []
    last = 0
    while not last:
        length, last = divmod(_read_number(file), 2)
        size = _read_number(file)
        sizes += [1 << size if size < 64 else size - 64] * length
    return tuple(sizes)


def _number(value: int) -> bytes:
    """Return an integer from 0 on, seven bits a byte, lowest first."""
    packed = bytearray()
    while value > 127:
        packed.append(value & 127 | 128)
        value >>= 7
    packed.append(value)
    return bytes(packed)


def _read_number(file: BinaryIO) -> int:
    value = 0
    for position in range(_MOST_BYTES):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << 7 * position
        if byte[0] < 128:
            return value
    raise ArtifactError(f"{file.name} is damaged; got no whole number in its header.")
