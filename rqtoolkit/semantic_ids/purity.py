"""Do items that share a prefix share a group? Beside what chance gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.errors import ShapeError

__all__ = ["GroupFigures", "group_figures", "purity"]

_SHUFFLES = 5


@dataclass(frozen=True)
class GroupFigures:
    """Do items that share a prefix share a group, such as a category?

    Attributes:
        groups: Different groups.
        items: Items that have one; others are left out.
        purity: Share of items in the most frequent group of their prefix, one a prefix length.
        shuffled: The same with the groups dealt out at random, the mean of several deals.
        shuffled_deviation: Standard deviation of these deals.
    """

    groups: int
    items: int
    purity: tuple[float, ...]
    shuffled: tuple[float, ...]
    shuffled_deviation: tuple[float, ...]


def purity(group: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return the share of items that have the most frequent label of their prefix.

    Args:
        group: Number of each item's prefix, shape (N,).
        labels: Number of each item's label, shape (N,), from 0.
    """
    pairs, counts = np.unique(group * (labels.max() + 1) + labels, return_counts=True)
    first = np.flatnonzero(np.diff(pairs // (labels.max() + 1), prepend=-1))
    return float(np.maximum.reduceat(counts, first).sum() / len(group))


def group_figures(
    groups: Sequence[NDArray[np.int64]], labels: Any, *, seed: int = 0
) -> GroupFigures:
    """Compare the purity of prefixes with that of groups dealt out at random.

    A prefix of few items is pure whatever they are, so purity says something only beside its
    control: the same groups, shuffled over the items.

    Args:
        groups: Numbers of the prefixes, as `prefix_groups` returns them.
        labels: One group an item, shape (N,), integers or strings; None, NaN or NA for none.
        seed: Fixes the shuffles.

    Raises:
        ShapeError: If there is not one label an item, or no item has one.
    """
    values = _as_array(labels)
    if values.shape != groups[0].shape:
        raise ShapeError(
            f"report: groups has to hold one group an item, shape {groups[0].shape}; "
            f"got shape {values.shape}."
        )
    known = _known(values)
    if not known.any():
        raise ShapeError("report: groups has to name a group of some item; got none. Leave it out.")
    kept = values[known].astype(str) if values.dtype.kind == "O" else values[known]
    names, numbers = np.unique(kept, return_inverse=True)
    rng = np.random.default_rng(seed)
    deals = [rng.permutation(numbers) for _ in range(_SHUFFLES)]
    members = [group[known] for group in groups]
    shuffled = np.array([[purity(group, deal) for group in members] for deal in deals])
    return GroupFigures(
        groups=len(names),
        items=len(numbers),
        purity=tuple(purity(group, numbers) for group in members),
        shuffled=tuple(shuffled.mean(axis=0).tolist()),
        shuffled_deviation=tuple(shuffled.std(axis=0).tolist()),
    )


def _as_array(labels: Any) -> NDArray:
    """Return an array whose elements numpy has not converted into each other, as NaN to 'nan'."""
    if hasattr(labels, "to_pylist"):  # of pyarrow
        labels = labels.to_pylist()
    if hasattr(labels, "to_numpy"):
        return np.asarray(labels.to_numpy())
    if hasattr(labels, "__array__"):
        return np.asarray(labels)
    listed = list(labels)
    return np.fromiter(listed, object, len(listed))


def _known(values: NDArray) -> NDArray[np.bool_]:
    if values.dtype.kind == "f":
        return ~np.isnan(values)
    if values.dtype.kind == "O":
        return np.array([not _is_missing(value) for value in values], dtype=bool)
    return np.ones(len(values), dtype=bool)


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return value != value
    return value is None or type(value).__name__ in ("NAType", "NaTType")  # of pandas
