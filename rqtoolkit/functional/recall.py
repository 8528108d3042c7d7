"""Recall of a search in compressed vectors, and exact neighbours in bounded memory.

Both the true neighbours and those among decoded vectors are found exactly: one float32 matrix
product gives a lower bound of every score, and what passes is scored in float64. Results depend
neither on chunks nor on threads.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import LARGEST_VALUE, check_count
from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, chunk_slices
from rqtoolkit.functional.threads import limited_threads

__all__ = ["NeighbourSearch", "Recall", "RecallMeter", "exact_neighbours", "recall_at"]

_METRICS = ("l2", "ip")
_QUERIES_AT_A_TIME = 1024


class NeighbourSearch:
    """Nearest neighbours of queries among rows that come in chunks, exact.

    Equal scores go to the earlier row. Memory beside the arguments and the k results of each query
    is `max_bytes` and two copies of the queries.

    Args:
        queries: Shape (Q, dim), finite.
        k: Neighbours of each.
        metric: "l2": the least ‖q − y‖² first; "ip": the largest ⟨q, y⟩ first.
        max_bytes: Bound on the memory at work.
        threads: Threads to use; as many as torch does when None.

    Raises:
        ConfigError: If k is no positive integer, or the metric unknown.
        ShapeError: If queries are not (Q, dim).
        DataError: If queries are not finite numbers within ±1e15.
    """

    def __init__(
        self,
        queries: NDArray,
        k: int,
        *,
        metric: str = "l2",
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int | None = None,
    ) -> None:
        check_count("exact_neighbours", "k", k)
        if metric not in _METRICS:
            raise ConfigError(
                f"exact_neighbours: metric={metric!r} is unknown. Choose 'l2' or 'ip'."
            )
        self.queries = _matrix(queries, "queries", None)
        self.k, self.metric, self.max_bytes, self.threads = k, metric, max_bytes, threads
        self.rows = 0
        count, dim = self.queries.shape
        self._scores = np.full((count, k), np.inf)
        self._indices = np.full((count, k), -1, dtype=np.int64)
        # Distances stay when both sides move; about the queries' mean they cancel least.
        mean = self.queries.mean(axis=0) if metric == "l2" and count else 0.0
        self._center = np.asarray(mean, dtype=np.float32)
        self._centred = self.queries - self._center
        # A product of float32 vectors is off by at most dim · eps · |q||y|, however it is summed.
        self._rounding = float((dim + 16) * np.finfo(np.float32).eps)

    def add(self, rows: NDArray) -> None:
        """Search further rows, numbered on from those before.

        Args:
            rows: Shape (n, dim), finite; also memory-mapped.

        Raises:
            ShapeError: If they do not have the queries' dimension.
            DataError: If they are not finite numbers within ±1e15.
        """
        count, dim = self.queries.shape
        width = 4 * (min(count, _QUERIES_AT_A_TIME) + 3 * dim)  # bounds, and copies of a row
        workers = self.threads or torch.get_num_threads()
        with limited_threads(self.threads), ThreadPoolExecutor(workers) as pool:
            for part in chunk_slices(len(rows), width, self.max_bytes):
                chunk = _matrix(rows[part], "base", dim)
                for block in chunk_slices(count, 1, _QUERIES_AT_A_TIME):
                    self._search(block, chunk, self.rows + part.start, workers, pool)
        self.rows += len(rows)

    @property
    def indices(self) -> NDArray[np.int64]:
        """Rows of the k nearest, the nearest first, shape (Q, k).

        Raises:
            DataError: If there were fewer than k rows.
        """
        if self.rows < self.k:
            raise DataError(
                f"exact_neighbours: k={self.k} needs at least as many rows in the base; got "
                f"{self.rows}. Ask for fewer."
            )
        return self._indices

    @property
    def scores(self) -> NDArray[np.float64]:
        """Squared distances, or inner products, of `indices`."""
        return -self._scores if self.metric == "ip" else self._scores

    def _search(
        self,
        block: slice,
        rows: NDArray[np.float32],
        first_row: int,
        workers: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        from rqtoolkit.functional.kernels.neighbours import keep_nearest

        queries, bounds = self.queries[block], self._lower_bounds(self._centred[block], rows)
        scores, indices = self._scores[block], self._indices[block]

        def search(share: slice) -> None:
            keep_nearest(
                queries[share],
                rows,
                bounds[share],
                first_row,
                self.metric == "ip",
                scores[share],
                indices[share],
            )

        list(pool.map(search, chunk_slices(len(queries), 1, -(-len(queries) // workers))))

    def _lower_bounds(
        self, queries: NDArray[np.float32], rows: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return at most ‖q − y‖², or −⟨q, y⟩, for each pair (Q, n).

        As |q||y| ≤ (‖q‖² + ‖y‖²) / 2, rounding is bounded by a share of the norms taken off.
        """
        rows = rows - self._center
        of_norms, of_products = (
            (1 - 2 * self._rounding, -2.0) if self.metric == "l2" else (-self._rounding, -1.0)
        )
        bounds = np.matmul(queries * np.float32(of_products), rows.T)
        row_part = np.square(rows).sum(axis=1) * np.float32(of_norms)
        # Products too small for float32 vanish; so much may have been lost.
        row_part -= np.float32(4 * queries.shape[1] * np.finfo(np.float32).tiny)
        bounds += row_part
        bounds += np.square(queries).sum(axis=1, keepdims=True) * np.float32(of_norms)
        return bounds


def exact_neighbours(
    queries: NDArray,
    base: NDArray | Iterable[NDArray],
    k: int,
    *,
    metric: str = "l2",
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> NDArray[np.int64]:
    """Rows of the k nearest neighbours of each query, the nearest first, shape (Q, k).

    Args:
        queries: Shape (Q, dim).
        base: Rows to search, (N, dim), or an iterable of chunks (n, dim) of them.
        k: Neighbours of each query, at most N.
        metric: As the other arguments, the rule for ties and the errors, in `NeighbourSearch`.
        max_bytes: Bound on the memory at work.
        threads: Threads to use; as many as torch does when None.
    """
    search = NeighbourSearch(queries, k, metric=metric, max_bytes=max_bytes, threads=threads)
    for rows in [base] if isinstance(base, np.ndarray) else base:
        search.add(rows)
    return search.indices


@dataclass(frozen=True)
class Recall:
    """Shares of the true neighbours that a search found, means over the queries.

    Attributes:
        one_recall_at: For each k, 1-recall@k (also R@k): the share of queries whose true nearest
            neighbour is among the first k found.
        k_recall_at: For each k, k-recall@k: the share of the true k nearest neighbours that are
            among the first k found.
    """

    one_recall_at: dict[int, float]
    k_recall_at: dict[int, float]


def recall_at(exact: NDArray, found: NDArray, ks: Sequence[int]) -> Recall:
    """Compare neighbours found with the true ones.

    Args:
        exact: Rows of the true neighbours, the nearest first, (Q, at least the largest k).
        found: Rows found, in the order of the search, (Q, at least the largest k); negative where
            there is none.
        ks: Numbers of first results to look at.

    Raises:
        ShapeError: If there are fewer neighbours than the largest k, or not one row a query.
        ConfigError: If a k is no positive integer.
    """
    most = max(check_count("recall_at", "k", k) for k in ks)
    shapes = exact.shape, found.shape
    if exact.ndim != 2 or len(exact) == 0 or len(found) != len(exact) or found.ndim != 2:
        raise ShapeError(f"recall_at: exact and found have to be (Q, k), Q from 1; got {shapes}.")
    if min(exact.shape[1], found.shape[1]) < most:
        raise ShapeError(f"recall_at: k={most} needs as many neighbours a query; got {shapes}.")
    hits = [found[:, :k] == exact[:, :1] for k in ks]
    common = [
        [len(np.intersect1d(a, b)) for a, b in zip(exact[:, :k], found[:, :k], strict=True)]
        for k in ks
    ]
    return Recall(
        {k: float(hit.any(axis=1).mean()) for k, hit in zip(ks, hits, strict=True)},
        {k: float(np.mean(count)) / k for k, count in zip(ks, common, strict=True)},
    )


class RecallMeter:
    """Recall of searching quantized vectors for the neighbours of queries, chunk by chunk.

    Queries are not quantized (asymmetric search), and every vector is looked at: what the
    exhaustive faiss index of the same codes returns.

    Args:
        queries: Shape (Q, dim).
        ks: Numbers of first results to look at.
        metrics: "l2", "ip", or both.
        max_bytes: Bound on the memory at work.
        threads: Threads to use; as many as torch does when None.
    """

    def __init__(
        self,
        queries: NDArray,
        *,
        ks: Sequence[int] = (1, 10, 100),
        metrics: Sequence[str] = _METRICS,
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int | None = None,
    ) -> None:
        if len(ks) == 0:
            raise ConfigError("recall: ks names no number of results. Pass (1, 10, 100).")
        self.ks = tuple(ks)
        most = max(check_count("recall", "k", k) for k in ks)

        def searches() -> dict[str, NeighbourSearch]:
            return {
                metric: NeighbourSearch(
                    queries, most, metric=metric, max_bytes=max_bytes, threads=threads
                )
                for metric in metrics
            }

        self._exact, self._found = searches(), searches()

    def add(self, vectors: NDArray, quantized: NDArray) -> None:
        """Search further vectors (n, dim) and what they decode to, in the same order."""
        for metric, search in self._exact.items():
            search.add(vectors)
            self._found[metric].add(quantized)

    def result(self) -> dict[str, Recall]:
        """Recall for each metric.

        Raises:
            DataError: If there were fewer vectors than the largest k.
        """
        return {
            metric: recall_at(search.indices, self._found[metric].indices, self.ks)
            for metric, search in self._exact.items()
        }


def _matrix(x: NDArray, name: str, dim: int | None) -> NDArray[np.float32]:
    x = np.asarray(x)
    if x.ndim != 2 or (dim is not None and x.shape[1] != dim):
        wanted = "(N, dim)" if dim is None else f"(N, {dim}), as the queries"
        raise ShapeError(f"exact_neighbours: {name} has to be {wanted}; got shape {x.shape}.")
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, dtype=np.float32)
    if x.size and not (x.min() >= -LARGEST_VALUE and x.max() <= LARGEST_VALUE):  # nor is NaN
        raise DataError(
            f"exact_neighbours: {name} has NaN, infinite or huge values (over {LARGEST_VALUE:g}). "
            "Remove, mend or scale them."
        )
    return x
