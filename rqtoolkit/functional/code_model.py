"""How probable each code is, learnt from the codes before it: the model of compressed code files.

Codes come in blocks. Those of a block are coded with what the blocks before it have shown, so that
no table travels with the codes: level 0 by how often each entry came, every further level by how
often it came after the code of the level above, blended with how often it came at all. How to
blend is chosen by the encoder for each level and block, and told to the decoder in the stream.

Both sides compute probabilities by the same few additions, multiplications and divisions, each of
one correctly rounded result: no logarithm, whose last bit differs between machines, decides about
anything that the decoder has to repeat.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.functional.codes import smallest_dtype
from rqtoolkit.functional.entropy_coding import CodeDecoder, CodeEncoder, code_bits

__all__ = ["MOST_ENTRIES", "CodeModel", "block_rows"]

MOST_ENTRIES = 2**16

_FIRST_ROWS = 64
_BLOCK_CODES = 2**20
_MOST_PAIRS = 2**22  # cells of a table of pairs, 32 MiB; levels of more go without
_TABLE_CELLS = 2**20
_CODES_PER_CALL = 16  # below, a table for each code is faster than a call for each context
_SAMPLE_ROWS = 2**14  # of a block, by which the blend is chosen

# Ways to blend: the count that each entry starts with, and the weight in codes of the frequencies
# without context beside those after the code above; 0 leaves the context out.
_BLENDS = tuple(
    (start, weight) for weight in (0.0, 4096.0, 512.0, 64.0, 8.0) for start in (1.0, 0.0625)
)


def block_rows(done: int, depth: int) -> int:
    """Return how many rows the block after `done` rows may have: an eighth of them, within limits.

    Args:
        done: Rows before the block.
        depth: Levels.
    """
    return min(max(_FIRST_ROWS, done // 8), max(1, _BLOCK_CODES // depth))


class CodeModel:
    """Adaptive frequencies of stacks of codes, conditioned on the level above.

    Encoder and decoder start with a new model each and go through the same blocks.

    Args:
        codebook_sizes: Entries of each level, from 1 to `MOST_ENTRIES`.

    Example:
        >>> encoder = CodeEncoder()
        >>> bits = CodeModel([4, 4]).encode(encoder, np.array([[0, 3], [2, 3]]))
        >>> CodeModel([4, 4]).decode(CodeDecoder(encoder.to_bytes()), rows=2)
        array([[0, 3],
               [2, 3]])

    References:
        Cleary & Witten, "Data Compression Using Adaptive Coding and Partial String Matching",
        IEEE Transactions on Communications 1984 (frequencies blended over orders of context).
        https://doi.org/10.1109/TCOM.1984.1096090
    """

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        self._sizes = tuple(codebook_sizes)
        self._rows = 0
        self._counts = [np.zeros(size, np.int64) for size in self._sizes]
        self._chosen = [np.ones(len(_BLENDS), np.int64) for _ in self._sizes]
        pairs = zip((0, *self._sizes[:-1]), self._sizes, strict=True)
        self._pairs = [
            np.zeros((above, size), np.int64) if above > 1 and above * size <= _MOST_PAIRS else None
            for above, size in pairs
        ]

    def encode(self, encoder: CodeEncoder, block: NDArray) -> float:
        """Append a block of codes to a stream, and learn from them.

        Args:
            encoder: Where they go.
            block: Codes, shape (n, depth), integers in range, n at most `block_rows`.

        Returns:
            What the model spends on them, −Σ log2 p, in bits.
        """
        bits = 0.0
        sample = block[:: max(1, len(block) // _SAMPLE_ROWS)]
        for level, size in enumerate(self._sizes):
            if size == 1:
                continue
            blend = 0
            if self._rows:  # the first block costs the same under each
                blend = int(np.argmin([self._bits(sample, level, b) for b in range(len(_BLENDS))]))
                odds = self._chosen[level] / self._chosen[level].sum()
                encoder.encode([blend], odds)
                bits += code_bits([blend], odds)
                self._chosen[level][blend] += 1
            bits += self._bits(block, level, blend)
            order, tables = self._tables(block, level, blend)
            column = block[order, level]
            for rows, table in tables:
                encoder.encode(column[rows], table)
        self._learn(block)
        return bits

    def decode(self, decoder: CodeDecoder, rows: int) -> NDArray[np.int64]:
        """Read the next block of codes from a stream, and learn from them.

        Args:
            decoder: Where they come from.
            rows: Number of rows that were encoded together.

        Returns:
            Codes, shape (rows, depth), int64.
        """
        block = np.zeros((rows, len(self._sizes)), np.int64)
        column = np.empty(rows, np.int64)
        for level, size in enumerate(self._sizes):
            if size == 1:
                continue
            blend = 0
            if self._rows:
                odds = self._chosen[level] / self._chosen[level].sum()
                blend = int(decoder.decode(odds, count=1)[0])
                self._chosen[level][blend] += 1
            order, tables = self._tables(block, level, blend)
            for part, table in tables:
                count = part.stop - part.start if table.ndim == 1 else None
                column[part] = decoder.decode(table, count=count)
            block[order, level] = column
        self._learn(block)
        return block

    def _tables(
        self, block: NDArray, level: int, blend: int
    ) -> tuple[slice | NDArray, Iterator[tuple[slice, NDArray]]]:
        """Return the order in which a level's codes are coded, and tables of weights in that order.

        Codes of one context share a table, hence they are coded together; the order follows from
        the level above, which the decoder has. Each table is for a slice of the ordered codes: one
        for all of them, shape (K,), or one each, shape (n, K).
        """
        start, weight = _BLENDS[blend]
        common = (self._counts[level] + start) / (self._rows + start * self._sizes[level])
        pairs = self._pairs[level]
        if pairs is None or not weight:
            return slice(None), iter([(slice(0, len(block)), common)])
        above = block[:, level - 1].astype(smallest_dtype(self._sizes[level - 1 : level]))
        order = np.argsort(above, kind="stable")  # a radix sort, up to 16 bits
        return order, _context_tables(above[order], pairs, weight * common)

    def _bits(self, block: NDArray, level: int, blend: int) -> float:
        """Return what the codes of a level cost under a blend."""
        start, weight = _BLENDS[blend]
        column, above = block[:, level], block[:, level - 1]
        pairs = self._pairs[level]
        odds = (self._counts[level][column] + start) / (self._rows + start * self._sizes[level])
        if weight and pairs is not None:
            seen = self._counts[level - 1][above]
            odds = (pairs[above, column] + weight * odds) / (seen + weight)
        return float(-np.log2(odds).sum())

    def _learn(self, block: NDArray) -> None:
        self._rows += len(block)
        for level, size in enumerate(self._sizes):
            self._counts[level] += np.bincount(block[:, level], minlength=size)
            pairs = self._pairs[level]
            if pairs is not None:
                cells = block[:, level - 1].astype(np.int64) * size + block[:, level]
                np.add.at(pairs.reshape(-1), cells, 1)


def _context_tables(
    contexts: NDArray, pairs: NDArray, common: NDArray
) -> Iterator[tuple[slice, NDArray]]:
    """Yield slices of sorted contexts with the weights of what follows them."""
    values, starts = np.unique(contexts, return_index=True)
    if len(contexts) < _CODES_PER_CALL * len(values):
        step = max(1, _TABLE_CELLS // len(common))
        for first in range(0, len(contexts), step):
            part = slice(first, min(first + step, len(contexts)))
            yield part, pairs[contexts[part]] + common
        return
    for value, first, end in zip(values, starts, [*starts[1:], len(contexts)], strict=True):
        yield slice(first, end), pairs[value] + common
