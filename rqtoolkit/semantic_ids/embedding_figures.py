"""Figures of codes beside the embeddings they stand for: distortion, cohesion, duplicates."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.errors import DataError
from rqtoolkit.functional.rate_distortion import error_ratio

__all__ = [
    "CohesionSums",
    "DistortionSums",
    "EmbeddingFigures",
    "VectorHashes",
    "embedding_figures",
]

Decode = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class EmbeddingFigures:
    """How much of the embeddings the codes keep.

    Attributes:
        mse: Squared error of the first 1, 2, … codes, summed over dim and averaged over items, in
            input units; empty where there is no quantizer to decode with.
        relative_error: The same over the error of the mean embedding.
        mse_fitted: Error of all codes on the items of the fit; None where there are none.
        mse_added: Error of all codes on the items added since; None where there are none.
        cohesion: Mean cosine of an item with the others of its prefix, averaged over the items that
            have company; one a prefix length, None where nobody has.
        random_cosine: Mean cosine of two different items, over all pairs.
        duplicates: Items whose embedding equals that of another one before it.
    """

    mse: tuple[float, ...]
    relative_error: tuple[float, ...]
    mse_fitted: float | None
    mse_added: float | None
    cohesion: tuple[float | None, ...]
    random_cosine: float | None
    duplicates: int


class CohesionSums:
    """Mean cosines within groups from sums of unit vectors, without a look at any pair.

    Of n unit vectors u, n (n − 1) ordered pairs have the mean cosine (|Σ u|² − n) / (n (n − 1)).

    Args:
        groups: Number of each item's prefix, one array (N,) a prefix length.
        dim: Vector size.
    """

    def __init__(self, groups: Sequence[NDArray[np.int64]], dim: int) -> None:
        self._sizes = [np.bincount(group) for group in groups]
        # Items alone need no sum: memory is at most half a table of the vectors.
        slots = [np.where(sizes > 1, np.cumsum(sizes > 1) - 1, -1) for sizes in self._sizes]
        self._slots = [slot[group] for slot, group in zip(slots, groups, strict=True)]
        self._sums = [np.zeros((int((sizes > 1).sum()), dim)) for sizes in self._sizes]
        self._squares = [np.zeros(len(sums)) for sums in self._sums]
        self._total, self._total_squares, self._items = np.zeros(dim), 0.0, 0

    def add(self, x: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Take in the vectors (n, dim) of items `rows` (n,)."""
        units = x.astype(np.float64)
        norms = np.sqrt(np.square(units).sum(axis=1, keepdims=True))
        units /= np.where(norms > 0, norms, 1.0)  # a zero vector is orthogonal to everything
        squares = np.square(units).sum(axis=1)
        self._total += units.sum(axis=0)
        self._total_squares += float(squares.sum())
        self._items += len(units)
        for slots, sums, square in zip(self._slots, self._sums, self._squares, strict=True):
            slot = slots[rows]
            order = np.argsort(slot, kind="stable")
            order = order[np.searchsorted(slot[order], 0) :]
            if len(order):
                found, first = np.unique(slot[order], return_index=True)
                sums[found] += np.add.reduceat(units[order], first)
                square[found] += np.add.reduceat(squares[order], first)

    def cohesion(self) -> tuple[float | None, ...]:
        """Return for each prefix length the mean over items with company; None without any."""
        means = []
        for sizes, sums, squares in zip(self._sizes, self._sums, self._squares, strict=True):
            n = sizes[sizes > 1]
            cosines = (np.square(sums).sum(axis=1) - squares) / (n * (n - 1))
            means.append(float(n @ cosines / n.sum()) if len(n) else None)
        return tuple(means)

    def random_cosine(self) -> float | None:
        """Return the mean over all pairs of different items; None for a single item."""
        n = self._items
        if n < 2:
            return None
        return float((self._total @ self._total - self._total_squares) / (n * (n - 1)))


class DistortionSums:
    """Squared errors of every prefix length, apart for items of the fit and items added since.

    Args:
        codes: Codes, shape (N, depth).
        added: Whether an item was added after the fit, shape (N,).
        decode: Gives for prefixes (n, d) the vectors (n, dim), in input units.
    """

    def __init__(self, codes: NDArray[np.int64], added: NDArray[np.bool_], decode: Decode) -> None:
        self._codes, self._added, self._decode = codes, added, decode
        self._errors = np.zeros(codes.shape[1])
        self._split, self._counts = np.zeros(2), np.zeros(2)
        self._sum: NDArray[np.float64] | float = 0.0
        self._square = 0.0

    def add(self, x: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Take in the vectors (n, dim) of items `rows` (n,)."""
        self._sum = self._sum + x.sum(axis=0, dtype=np.float64)
        self._square += float(np.square(x, dtype=np.float64).sum())
        added = self._added[rows]
        self._counts += [(~added).sum(), added.sum()]
        for depth in range(1, self._codes.shape[1] + 1):
            left = np.subtract(x, self._decode(self._codes[rows, :depth]), dtype=np.float64)
            errors = np.square(left, out=left).sum(axis=1)
            self._errors[depth - 1] += errors.sum()
        self._split += [errors[~added].sum(), errors[added].sum()]

    def mse(self) -> tuple[float, ...]:
        """Return the error a vector for 1, 2, … codes."""
        return tuple((self._errors / self._counts.sum()).tolist())

    def relative_error(self) -> tuple[float, ...]:
        """Return the errors over that of the mean vector."""
        spread = self._square - float(np.square(self._sum).sum()) / float(self._counts.sum())
        return tuple(error_ratio(error, max(0.0, spread)) for error in self._errors.tolist())

    def split(self) -> tuple[float | None, float | None]:
        """Return the error of all codes on fitted and on added items, None where there are none."""
        fitted, added = (
            float(error / count) if count else None
            for error, count in zip(self._split, self._counts, strict=True)
        )
        return fitted, added


class VectorHashes:
    """Finds equal vectors by 128 bits of hash for each, wherever they are.

    Args:
        items: Number of vectors.
        dim: Their size.
    """

    def __init__(self, items: int, dim: int) -> None:
        # Fixed odd factors: sums modulo 2⁶⁴ of products, the multiply-shift family of hashes.
        rng = np.random.default_rng(dim)
        self._factors = rng.integers(2**63, size=(dim, 2), dtype=np.uint64) * np.uint64(2) + 1
        self._hashes = np.zeros((items, 2), np.uint64)

    def add(self, x: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Take in the vectors (n, dim) of items `rows` (n,)."""
        bits = (x + np.float32(0)).view(np.uint32)  # −0 and 0 are equal, and become so
        bits = bits.astype(np.uint64)
        mixed = bits * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        for half in range(2):
            self._hashes[rows, half] = (mixed * self._factors[:, half]).sum(axis=1, dtype=np.uint64)

    def duplicates(self) -> int:
        """Return how many vectors equal an earlier one."""
        pairs = self._hashes.view([("high", np.uint64), ("low", np.uint64)])[:, 0]
        ordered = np.sort(pairs, order=("high", "low"))
        return int((ordered[1:] == ordered[:-1]).sum())


def embedding_figures(
    chunks: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]],
    groups: Sequence[NDArray[np.int64]],
    dim: int,
    *,
    codes: NDArray[np.int64] | None = None,
    added: NDArray[np.bool_] | None = None,
    decode: Decode | None = None,
) -> EmbeddingFigures:
    """Measure codes against embeddings in one pass over them.

    Args:
        chunks: Vectors (n, dim) with the items they belong to, (n,); every item once.
        groups: Numbers of the prefixes, as `prefix_groups` returns them.
        dim: Vector size.
        codes: Codes to decode, shape (N, depth), without counters.
        added: Whether an item was added after the fit, shape (N,); None for no.
        decode: Gives for prefixes (n, d) the vectors in input units; None leaves distortion out.

    Raises:
        DataError: If a vector is not finite, or an item has none.
    """
    items = len(groups[0])
    cohesion, hashes = CohesionSums(groups, dim), VectorHashes(items, dim)
    distortion = None
    if decode is not None and codes is not None:
        distortion = DistortionSums(
            codes, np.zeros(items, bool) if added is None else added, decode
        )
    seen = np.zeros(items, bool)
    for x, rows in chunks:
        if not np.isfinite(x).all():
            raise DataError("report: embeddings hold NaN or infinity. Drop or repair such rows.")
        seen[rows] = True
        for sums in (cohesion, hashes, distortion):
            if sums is not None:
                sums.add(x, rows)
    if not seen.all():
        raise DataError(
            f"report: embeddings have to cover every item; got none for {int((~seen).sum())} of "
            f"{items}. Pass the embeddings of all items."
        )
    fitted, later = distortion.split() if distortion else (None, None)
    return EmbeddingFigures(
        mse=distortion.mse() if distortion else (),
        relative_error=distortion.relative_error() if distortion else (),
        mse_fitted=fitted,
        mse_added=later,
        cohesion=cohesion.cohesion(),
        random_cosine=cohesion.random_cosine(),
        duplicates=hashes.duplicates(),
    )
