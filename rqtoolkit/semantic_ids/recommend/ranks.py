"""Where held-out items stand among scores or in lists, and the metrics of that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.semantic_ids.recommend.sequences import Sequences

__all__ = ["Metrics", "Ranks", "metrics_of", "ranks_in_lists", "ranks_in_scores"]


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where the targets stand.

    Attributes:
        better: Items ranked before the target, shape (users,), int64; −1 for a target that is
            masked or not listed, a miss at every k.
        tied: Items that share the target's place, with the target itself, shape (users,), int64.
    """

    better: NDArray[np.int64]
    tied: NDArray[np.int64]

    def take(self, users: NDArray) -> "Ranks":
        """Return the ranks of some users."""
        return Ranks(self.better[users], self.tied[users])

    def hits(self, k: int) -> NDArray[np.float64]:
        """Chance that each target is among the first k, its ties in random order: (users,)."""
        return self._average(np.ones(k))

    def gains(self, k: int) -> NDArray[np.float64]:
        """Expected 1 / log2(1 + rank) of each target, 0 beyond rank k: (users,)."""
        return self._average(1 / np.log2(np.arange(2, k + 2)))

    def _average(self, values: NDArray) -> NDArray[np.float64]:
        """Mean of values[rank − 1] over the places that the target shares with its ties."""
        sums = np.concatenate([[0.0], np.cumsum(values)])
        first = np.clip(self.better, 0, len(values))
        last = np.clip(self.better + self.tied, 0, len(values))
        return np.where(self.better < 0, 0.0, (sums[last] - sums[first]) / self.tied)


def ranks_in_scores(
    scores: NDArray[np.floating], targets: NDArray[np.int64], seen: Sequences | None = None
) -> Ranks:
    """Return where targets stand among the scores of all items.

    Args:
        scores: Shape (users, items); −inf is never recommended. Left as they are.
        targets: Shape (users,), int64.
        seen: Items of each user to leave out; None leaves out none.

    Raises:
        ShapeError: If there is not one row of scores per user and one column per item.
        DataError: If a score is NaN.
    """
    scores, rows = np.asarray(scores), np.arange(len(targets))
    items = scores.shape[-1] if seen is None else len(seen.item_ids)
    if scores.shape != (len(targets), items):
        raise ShapeError(
            f"evaluate_next_item: scores must have shape ({len(targets)}, {items}); "
            f"got {scores.shape}. Return a row a user and a column an item."
        )
    if np.isnan(scores).any():
        raise DataError(
            f"evaluate_next_item: scores must be numbers; got {int(np.isnan(scores).sum())} NaN. "
            "Use −inf for items that are never to be recommended."
        )
    target = scores[rows, targets][:, None]
    better, tied = (scores > target).sum(1), (scores == target).sum(1)
    possible = target[:, 0] > -np.inf
    if seen is not None:
        # What is seen is counted out, in place of a masked copy of all scores.
        user, item = _distinct_pairs(seen)
        score, own = scores[user, item], target[user, 0]
        better -= np.bincount(user[score > own], minlength=len(rows))
        tied -= np.bincount(user[score == own], minlength=len(rows))
        possible[user[item == targets[user]]] = False
    return Ranks(np.where(possible, better, -1), np.where(possible, tied, 1))


def ranks_in_lists(
    lists: NDArray[np.int64], targets: NDArray[np.int64], seen: Sequences | None = None
) -> Ranks:
    """Return where targets stand in lists of items, best first.

    Args:
        lists: Rows of items, shape (users, k), −1 where a list is shorter.
        targets: Shape (users,), int64.
        seen: Items of each user to strike out of the lists; None strikes out none.

    Raises:
        ShapeError: If there is not one list per user.
        DataError: If a list holds an item twice.
    """
    lists, rows = np.asarray(lists), np.arange(len(targets))
    if lists.ndim != 2 or len(lists) != len(targets):
        raise ShapeError(
            f"evaluate_next_item: lists must have shape ({len(targets)}, k); got {lists.shape}."
        )
    ordered = np.sort(lists, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise DataError("evaluate_next_item: a list holds an item twice. Give distinct items.")
    kept = lists >= 0
    if seen is not None:
        user, item = _distinct_pairs(seen)
        items = len(seen.item_ids)
        kept &= ~np.isin(rows[:, None] * items + lists, user * items + item)
    found = kept & (lists == targets[:, None])
    before = np.where(found, kept.cumsum(axis=1), 0).max(axis=1, initial=0)
    return Ranks(before - 1, np.ones(len(targets), np.int64))


@dataclass(frozen=True)
class Metrics:
    """Means over users, by k; NaN where there are none.

    Attributes:
        users: Users averaged over.
        recall: Share of users whose target is among the first k (one target a user: hit rate).
        ndcg: Mean of 1 / log2(1 + rank), 0 beyond rank k.
    """

    users: int
    recall: dict[int, float]
    ndcg: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as JSON has them: None for NaN, k as text."""
        plain = {
            name: {str(k): value if self.users else None for k, value in values.items()}
            for name, values in (("recall", self.recall), ("ndcg", self.ndcg))
        }
        return {"users": self.users, **plain}


def metrics_of(ranks: Ranks, ks: Sequence[int]) -> Metrics:
    """Return the means over users of recall and NDCG at each k."""
    users = len(ranks.better)

    def mean(values: NDArray) -> float:
        return float(values.mean()) if users else math.nan

    return Metrics(
        users=users,
        recall={k: mean(ranks.hits(k)) for k in ks},
        ndcg={k: mean(ranks.gains(k)) for k in ks},
    )


def _distinct_pairs(seen: Sequences) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return users and items of all that was seen, each pair once."""
    items = len(seen.item_ids)
    pairs = np.unique(np.repeat(np.arange(len(seen)), seen.lengths) * items + seen.items)
    return pairs // items, pairs % items
