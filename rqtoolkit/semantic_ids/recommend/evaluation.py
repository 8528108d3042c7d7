"""Next-item evaluation: the rank of each user's held-out item among all items of the catalogue."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.errors import ConfigError, DataError
from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, chunk_slices
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.semantic_ids.recommend.ranks import (
    Metrics,
    Ranks,
    metrics_of,
    ranks_in_lists,
    ranks_in_scores,
)
from rqtoolkit.semantic_ids.recommend.sequences import Sequences, Split

__all__ = [
    "Evaluation",
    "Lists",
    "Scorer",
    "evaluate_next_item",
    "target_ranks",
]


@runtime_checkable
class Scorer(Protocol):
    """A recommender that gives every item of the catalogue a score."""

    def scores(self, histories: Sequences) -> NDArray[np.floating]:
        """Return scores, shape (users, items), higher is better, −inf for never."""


@runtime_checkable
class Lists(Protocol):
    """A recommender that gives a list of items, best first."""

    def recommend(self, histories: Sequences, k: int, *, mask_seen: bool) -> NDArray[np.int64]:
        """Return rows of items, shape (users, k), −1 where there are no more.

        Args:
            histories: What each user has done.
            k: Items to list.
            mask_seen: Leave out what is in the user's history.
        """


@dataclass(frozen=True)
class Evaluation:
    """How well a recommender predicts the next item, and by which rules.

    Attributes:
        all: Over every user evaluated.
        warm: Over users whose target occurs in the training interactions.
        cold: Over the others, whose target nobody is seen with in training.
        split: "test" or "validation".
        items: Size of the catalogue, all of which is ranked.
        mask_seen: Whether items of the user's history are left out of the ranking.
        ties: What happens to items of equal score.
        ranks: Of each user, in the order of the split, for tests of paired users.
    """

    all: Metrics
    warm: Metrics
    cold: Metrics
    split: str
    items: int
    mask_seen: bool
    ties: str
    ranks: Ranks = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the single ranks as JSON has it: None for NaN, k as text."""
        rules = ("split", "items", "mask_seen", "ties")
        parts = {name: getattr(self, name).to_json() for name in ("all", "warm", "cold")}
        return parts | {name: getattr(self, name) for name in rules}


def evaluate_next_item(
    recommender: Scorer | Lists,
    sequences: Sequences,
    *,
    split: Literal["test", "validation"] = "test",
    ks: Sequence[int] = (5, 10),
    mask_seen: bool = True,
    by: Literal["scores", "recommend"] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    progress: Progress | None = None,
) -> Evaluation:
    """Rank all items for every user and look where the one that came next stands.

    The last item of each user is the test, the last but one the validation
    (`Sequences.leave_one_out`). No item is sampled away. Items of equal score are taken to be in
    random order and the metrics are expectations over it, so that a constant score gets k / items
    and never 0 or 1; lists count as they are. A target that its user has met before is masked with
    the rest of the history.

    Args:
        recommender: Has `scores(histories)` or `recommend(histories, k, mask_seen=…)`, trained on
            `sequences.leave_one_out().train`.
        sequences: Of all users, whole.
        split: Which of the two to predict.
        ks: Lengths of the list of recommendations.
        mask_seen: Leave out what is in the user's history.
        by: Which method to call; None prefers recommend, whose lists are what users would see.
        max_bytes: Bound on the scores held at once, which decides how many users are asked about
            in one call.
        progress: Called with the number of users done.

    Raises:
        ConfigError: If split, ks or by is none of these, or the recommender has no such method.
        ShapeError: If scores or lists have another shape.
        DataError: If no user has three interactions, a score is NaN, or a list holds an item twice
            or a row that is none.

    Example:
        >>> evaluate_next_item(Popularity(sequences.leave_one_out().train), sequences).all.recall
        {5: 0.0076, 10: 0.0115}

    References:
        Krichene & Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020, on why all items
        are ranked. https://dl.acm.org/doi/10.1145/3394486.3403226
    """
    where = "evaluate_next_item"
    if split not in ("test", "validation"):
        raise ConfigError(f"{where}: split={split!r} must be 'test' or 'validation'.")
    if not ks or any(k < 1 for k in ks):
        raise ConfigError(f"{where}: ks={tuple(ks)} must be numbers of at least 1.")
    train, validation, test = sequences.leave_one_out()
    held_out = test if split == "test" else validation
    if not len(held_out.targets):
        raise DataError(
            f"{where}: sequences must have users of three interactions or more, of which one is "
            "held out; got none. Pass the sequences of the training, whole."
        )
    lists = (by or _preferred(recommender)) == "recommend"
    ranks = target_ranks(
        recommender,
        held_out,
        k=max(ks),
        mask_seen=mask_seen,
        by=by,
        max_bytes=max_bytes,
        progress=progress,
    )
    cold = train.counts[held_out.targets] == 0
    return Evaluation(
        all=metrics_of(ranks, ks),
        warm=metrics_of(ranks.take(~cold), ks),
        cold=metrics_of(ranks.take(cold), ks),
        split=split,
        items=len(sequences.item_ids),
        mask_seen=mask_seen,
        ties="as listed" if lists else "average over random orders",
        ranks=ranks,
    )


def target_ranks(
    recommender: Scorer | Lists,
    split: Split,
    *,
    k: int,
    mask_seen: bool = True,
    by: Literal["scores", "recommend"] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    progress: Progress | None = None,
) -> Ranks:
    """Return where the targets of a split stand; arguments and errors of `evaluate_next_item`.

    Args:
        recommender: Has `scores` or `recommend`.
        split: Histories and targets.
        k: Items to ask `recommend` for.
        mask_seen: Leave out what is in the user's history.
        by: Which method to call; None prefers recommend.
        max_bytes: Bound on the scores held at once.
        progress: Called with the number of users done.
    """
    method = by or _preferred(recommender)
    if method not in ("scores", "recommend") or not hasattr(recommender, method):
        raise ConfigError(
            f"evaluate_next_item: a recommender must have scores(histories) or "
            f"recommend(histories, k, mask_seen=…); got {type(recommender).__name__} and by={by!r}."
        )
    histories, targets = split
    parts = []
    for users in chunk_slices(len(targets), 4 * len(histories.item_ids), max_bytes):
        part, target = histories.take(users), targets[users]
        if method == "scores":
            scores = recommender.scores(part)  # type: ignore[union-attr]
            parts.append(ranks_in_scores(scores, target, part if mask_seen else None))
        else:
            lists = recommender.recommend(part, k, mask_seen=mask_seen)  # type: ignore[union-attr]
            parts.append(ranks_in_lists(lists, target, part if mask_seen else None))
        report(progress, "evaluate", users.stop, len(targets))
    return Ranks(
        better=np.concatenate([r.better for r in parts] or [np.empty(0, np.int64)]),
        tied=np.concatenate([r.tied for r in parts] or [np.empty(0, np.int64)]),
    )


def _preferred(recommender: Scorer | Lists) -> Literal["scores", "recommend"]:
    return "recommend" if isinstance(recommender, Lists) else "scores"
