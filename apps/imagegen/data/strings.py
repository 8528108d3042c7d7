"""Millions of short strings in two arrays: names of files and captions, at a byte a letter."""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

__all__ = ["Strings"]


class Strings(Sequence[str]):
    """A sequence of strings, held as UTF-8 bytes and where each begins and ends.

    A list of as many Python strings takes fifty bytes more for each, and copying it to a worker
    takes minutes.

    Args:
        buffer: All bytes, shape (M,), uint8.
        starts: First byte of each string, shape (N,), int64.
        stops: The byte after its last, shape (N,), int64.
    """

    def __init__(self, buffer: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
        self.buffer, self.starts, self.stops = buffer, starts, stops

    @classmethod
    def pack(cls, strings: Iterable[str]) -> "Strings":
        """Return the same strings packed."""
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        lengths = np.array([len(part) for part in encoded], np.int64)
        return cls.from_lengths(np.frombuffer(b"".join(encoded), np.uint8), lengths)

    @classmethod
    def from_lengths(cls, buffer: np.ndarray, lengths: np.ndarray) -> "Strings":
        """Return the strings that stand in a row in `buffer`, each of its length, int64."""
        stops = np.cumsum(lengths, dtype=np.int64)
        return cls(buffer, stops - lengths, stops)

    def take(self, rows: np.ndarray) -> "Strings":
        """Return the strings of these rows, shape (M,), int64; the bytes are shared."""
        return Strings(self.buffer, self.starts[rows], self.stops[rows])

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> "Strings": ...
    def __getitem__(self, row: int | slice) -> "str | Strings":
        if isinstance(row, slice):
            return Strings(self.buffer, self.starts[row], self.stops[row])
        part = self.buffer[self.starts[row] : self.stops[row]]
        return part.tobytes().decode("utf-8", "surrogateescape")
