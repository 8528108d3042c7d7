"""Recommenders without training, which every trained one has to beat: a few sparse products each.

They score all items for many users at once; `evaluate_next_item` takes them as they are.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.semantic_ids.recommend.evaluation import Scorer
from rqtoolkit.semantic_ids.recommend.sequences import Sequences

__all__ = ["Blend", "CoOccurrence", "ContentNeighbours", "Markov", "Popularity"]


class Popularity:
    """The same for everyone: how often each item occurs.

    Args:
        train: Interactions to count.
    """

    def __init__(self, train: Sequences) -> None:
        self._counts = train.counts.astype(np.float32)

    def scores(self, histories: Sequences) -> NDArray[np.float32]:
        """Return the counts, shape (users, items), one row shown for all."""
        return np.broadcast_to(self._counts, (len(histories), len(self._counts)))


class Markov:
    """How often each item directly followed the user's last one (a Markov chain of order 1).

    Args:
        train: Interactions to count.
    """

    def __init__(self, train: Sequences) -> None:
        self._following = following(train, window=1, decay=1)

    def scores(self, histories: Sequences) -> NDArray[np.float32]:
        """Return counts, shape (users, items)."""
        return (recent_items(histories, window=1, decay=1) @ self._following).toarray()


class CoOccurrence:
    """How often each item came soon after the user's latest ones, the nearer the more it counts.

    An item seen t steps after another counts decay^(t − 1), up to `window` steps, in counting as in
    scoring. Every item's counts are divided by the square root of their sum: half way between raw
    counts, which let popular items of the history speak for all, and shares, which trust rare ones
    as much as frequent ones.

    Args:
        train: Interactions to count.
        window: Steps that count, and items of a history that are looked at.
        decay: What one step more is worth, over 0 and at most 1.

    Raises:
        ConfigError: If window or decay is out of its range.
    """

    def __init__(self, train: Sequences, *, window: int = 5, decay: float = 0.8) -> None:
        self._window, self._decay = _checked("CoOccurrence", window, decay)
        counts = following(train, window=window, decay=decay)
        sums = np.maximum(np.asarray(counts.sum(axis=1)), 1)
        self._following = (sparse.diags_array(sums**-0.5) @ counts).tocsr()

    def scores(self, histories: Sequences) -> NDArray[np.float32]:
        """Return weighted counts, shape (users, items)."""
        recent = recent_items(histories, window=self._window, decay=self._decay)
        return (recent @ self._following).toarray()


class ContentNeighbours:
    """How much each item is like the user's latest ones: cosine to their weighted sum.

    It needs no interaction of an item, and so is the bar for new ones.

    Args:
        embeddings: Of all items in the catalogue's order, shape (items, dim).
        window: Items of a history that are looked at.
        decay: What one step back is worth, over 0 and at most 1.

    Raises:
        ShapeError: If there are not two axes.
        DataError: If a value is not finite.
        ConfigError: If window or decay is out of its range.
    """

    def __init__(self, embeddings: ArrayLike, *, window: int = 5, decay: float = 0.7) -> None:
        self._window, self._decay = _checked("ContentNeighbours", window, decay)
        table = np.asarray(embeddings, dtype=np.float32)
        if table.ndim != 2:
            raise ShapeError(
                f"ContentNeighbours: embeddings must have shape (items, dim); got {table.shape}."
            )
        if not np.isfinite(table).all():
            raise DataError("ContentNeighbours: embeddings must be finite; got NaN or infinity.")
        norms = np.linalg.norm(table, axis=1, keepdims=True)
        self._unit = table / np.maximum(norms, np.finfo(np.float32).tiny)

    def scores(self, histories: Sequences) -> NDArray[np.float32]:
        """Return sums of weighted cosines, shape (users, items)."""
        if len(histories.item_ids) != len(self._unit):
            raise ShapeError(
                f"ContentNeighbours: embeddings must have a row for each of the "
                f"{len(histories.item_ids)} items; got {len(self._unit)}. Order them by item_ids."
            )
        recent = recent_items(histories, window=self._window, decay=self._decay)
        return (recent @ self._unit) @ self._unit.T


class Blend:
    """The weighted sum of several recommenders' scores, each divided by its user's largest.

    Args:
        recommenders: Those to blend.
        weights: Of each.

    Raises:
        ConfigError: If there are not as many weights as recommenders, or none.
    """

    def __init__(self, recommenders: Sequence[Scorer], weights: Sequence[float]) -> None:
        if len(recommenders) != len(weights) or not recommenders:
            raise ConfigError(
                f"Blend: weights={list(weights)} must be one for each of "
                f"{len(recommenders)} recommenders."
            )
        self._recommenders, self._weights = list(recommenders), list(weights)

    def scores(self, histories: Sequences) -> NDArray[np.float32]:
        """Return sums of scaled scores, shape (users, items)."""
        total = np.zeros((len(histories), len(histories.item_ids)), np.float32)
        for recommender, weight in zip(self._recommenders, self._weights, strict=True):
            scores = recommender.scores(histories)
            largest = np.abs(scores).max(axis=1, keepdims=True, initial=0)
            total += scores * (np.float32(weight) / np.where(largest > 0, largest, 1))
        return total


def following(train: Sequences, *, window: int, decay: float) -> sparse.csr_array:
    """Count which items follow which, t steps later counting decay^(t − 1).

    Args:
        train: Interactions to count.
        window: Most steps.
        decay: Weight of one step more.

    Returns:
        Shape (items, items), float32: row the earlier item, column the later one.
    """
    items = len(train.item_ids)
    user = np.repeat(np.arange(len(train)), train.lengths)
    total = sparse.csr_array((items, items), dtype=np.float32)
    for step in range(1, window + 1):
        same = user[:-step] == user[step:]
        earlier, later = train.items[:-step][same], train.items[step:][same]
        weights = np.full(len(earlier), decay ** (step - 1), np.float32)
        total = total + sparse.csr_array((weights, (earlier, later)), shape=(items, items))
    return total.tocsr()


def recent_items(histories: Sequences, *, window: int, decay: float) -> sparse.csr_array:
    """Return the latest items of each user, the one t steps back with weight decay^(t − 1).

    Args:
        histories: What each user has done.
        window: Items of a history that are kept.
        decay: Weight of one step more.

    Returns:
        Shape (users, items), float32.
    """
    last = histories.keep_last(window)
    steps_back = np.repeat(last.offsets[1:] - 1, last.lengths) - np.arange(len(last.items))
    shape = (len(last), len(last.item_ids))
    weights = (decay**steps_back).astype(np.float32)
    return sparse.csr_array((weights, last.items, last.offsets), shape=shape)


def _checked(where: str, window: int, decay: float) -> tuple[int, float]:
    check_count(where, "window", window)
    if not 0 < decay <= 1:
        raise ConfigError(f"{where}: decay={decay!r} must be over 0 and at most 1.")
    return window, decay
