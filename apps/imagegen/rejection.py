"""Rejection sampling: draw more than is wanted, keep what a classifier is surest of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rqtoolkit.errors import ConfigError, ShapeError

__all__ = ["acceptance", "best_of_each_class", "candidate_labels"]


def candidate_labels(labels: np.ndarray, accept: float) -> np.ndarray:
    """Return the classes of the images to draw: of each class its number over `accept`, rounded up.

    Args:
        labels: Classes of the images wanted, shape (N,), int64.
        accept: Share that is kept, over 0 and at most 1.

    Returns:
        Classes, sorted, shape (M,), int64.
    """
    if not 0 < accept <= 1:
        raise ConfigError(
            f"rejection: accept={accept} must be over 0 and at most 1. Write 0.05 to keep one "
            f"image of twenty."
        )
    classes, counts = np.unique(labels, return_counts=True)
    # A share like 0.05 is a little more in binary: 7 / 0.05 must still be 140.
    drawn = [math.ceil(round(count / accept, 6)) for count in counts.tolist()]
    return np.repeat(classes, drawn).astype(np.int64)


def best_of_each_class(
    candidates: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return which candidates are kept: of each class as many as wanted, the best scored first.

    Args:
        candidates: Class asked for of each candidate, shape (M,), int64.
        scores: Probability of that class for the classifier, shape (M,).
        labels: Classes of the images wanted, shape (N,), int64.

    Returns:
        Rows of the candidates, shape (N,), int64: the i-th is of class labels[i], and within a
        class rows ascend, so that their order says nothing of their scores. Of equal scores the
        first drawn is kept.

    Raises:
        ShapeError: If a class has fewer candidates than are wanted.
    """
    chosen = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        wanted = np.flatnonzero(labels == label)
        rows = np.flatnonzero(candidates == label)
        if len(rows) < len(wanted):
            raise ShapeError(
                f"rejection: class {label} needs at least {len(wanted)} candidates; got "
                f"{len(rows)}. Draw more."
            )
        best = np.argsort(-scores[rows], kind="stable")[: len(wanted)]
        chosen[wanted] = np.sort(rows[best])
    return chosen


def acceptance(candidates: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Return what rejection did: how many were drawn and kept, and how sure the classifier was.

    Args:
        candidates: Class asked for of each candidate, shape (M,).
        scores: Probability of that class, shape (M,).
        chosen: Rows that were kept.

    Returns:
        `drawn`, `kept`, the mean probability of both, and for every class by number the least
        probability kept (`thresholds`).
    """
    labels = candidates[chosen]
    return {
        "drawn": len(candidates),
        "kept": len(chosen),
        "mean_probability_drawn": float(scores.mean()),
        "mean_probability_kept": float(scores[chosen].mean()),
        "thresholds": {
            str(label): float(scores[chosen][labels == label].min()) for label in np.unique(labels)
        },
    }
