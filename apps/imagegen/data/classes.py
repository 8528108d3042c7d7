"""Classes numbered from 0, and samples with the classes' own proportions."""

import dataclasses

import numpy as np

from imagegen.data.stored import Table
from imagegen.images import ImageData
from rqtoolkit.errors import ConfigError, DataError, ShapeError

__all__ = ["number_classes", "stratified_rows"]

MOST_CLASSES = 100_000  # labels beyond are a mistake, and one name for each would fill the memory


def number_classes(tables: list[Table]) -> list[Table]:
    """Return the tables with their classes numbered alike from 0, labels as int64.

    Raises:
        DataError: If labels are negative, huge, not integers or not named, or only in one table.
        ShapeError: If there is not one for each image.
    """
    if all(table.labels is None for table in tables):
        return tables
    labels = [_check_labels(table) for table in tables]
    names = tables[0].class_names
    if any(part.dtype.kind == "U" for part in labels):
        words, joined = np.unique(np.concatenate(labels), return_inverse=True)
        names = tuple(map(str, words))
        labels = np.split(joined, np.cumsum([len(part) for part in labels])[:-1])
    high = max(int(part.max()) for part in labels)
    names = tuple(str(number) for number in range(high + 1)) if names is None else names
    if high >= len(names):
        raise DataError(
            f"data: class_names={names!r:.80} does not name every label; got labels up to {high}. "
            f"Give one name for each."
        )
    return [
        dataclasses.replace(table, labels=part.astype(np.int64), class_names=names)
        for table, part in zip(tables, labels, strict=True)
    ]


def _check_labels(table: Table) -> np.ndarray:
    """Return the labels of a table: numbers from 0, also where they are written as words."""
    labels, where = table.labels, table.records.name(0)
    if labels is None:
        raise DataError(
            f"data: training and held-out images must both have classes; got none for {where}. "
            f"Add them, or leave them out of both."
        )
    if labels.shape != (len(table.records),):
        raise ShapeError(
            f"data: labels must be one for each of {len(table.records)} images; got shape "
            f"{labels.shape} for {where}. Drop what has no partner."
        )
    if labels.dtype.kind == "U":
        if not all(label.isdecimal() for label in np.unique(labels)):
            return labels
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"data: labels must be integers from 0; got {labels.dtype} for {where}. Number the "
            f"classes."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MOST_CLASSES:
        raise DataError(
            f"data: labels must be integers from 0 to {MOST_CLASSES - 1}; got {low} to {high} for "
            f"{where}. Number the classes."
        )
    return labels


def stratified_rows(images: ImageData, held_out: float | int, seed: int) -> np.ndarray:
    """Return sorted rows of a sample with the classes' own proportions.

    Seats go by largest remainder, so that the total is exact: the share rounded up, as
    scikit-learn's train_test_split does (a fifth of 1,797 is 360).

    Args:
        images: The set.
        held_out: A share between 0 and 1, or a number of images.
        seed: Fixes the sample.

    Raises:
        ConfigError: If held_out is neither.
    """
    is_share = isinstance(held_out, float) and 0 < held_out < 1
    total = int(np.ceil(round(held_out * len(images), 6))) if is_share else int(held_out)
    if (total != held_out and not is_share) or not 1 <= total <= len(images):
        given = held_out if held_out % 1 else int(held_out)  # YAML's whole numbers come as floats
        raise ConfigError(
            f"data: held_out={given} must be a share between 0 and 1 or a number of "
            f"images up to {len(images)}. Change it, or give more images."
        )
    labels = np.zeros(len(images), np.int64) if images.labels is None else images.labels
    classes, counts = np.unique(labels, return_counts=True)
    quotas = counts * total / len(images)
    seats = np.floor(quotas).astype(int)
    remainder_first = np.argsort(seats - quotas, kind="stable")
    seats[remainder_first[: total - seats.sum()]] += 1
    generator = np.random.default_rng(seed)
    rows = [
        generator.permutation(np.flatnonzero(labels == name))[:number]
        for name, number in zip(classes, seats, strict=True)
    ]
    return np.sort(np.concatenate(rows))
