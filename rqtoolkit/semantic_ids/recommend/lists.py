"""From scores to lists of items, a few users at a time."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import DataError
from rqtoolkit.semantic_ids.recommend.sequences import Sequences

__all__ = ["best_items", "chosen_items", "split_users"]


def split_users(histories: Sequences, count: int) -> Iterator[tuple[NDArray[np.int64], Sequences]]:
    """Yield `count` users at a time, their rows and histories, shortest first.

    Few then share a batch with a much longer one, which they would be padded to.
    """
    order = np.argsort(histories.lengths, kind="stable")
    for start in range(0, len(order), count):
        rows = order[start : start + count]
        yield rows, histories.take(rows)


def chosen_items(where: str, items: ArrayLike, item_ids: NDArray) -> NDArray[np.bool_]:
    """Return which of a catalogue's items are among some, shape (N,).

    Args:
        where: Place for messages.
        items: Ids of items.
        item_ids: The catalogue, shape (N,).

    Raises:
        DataError: If one of them is not in the catalogue.
    """
    wanted = np.asarray(items)
    if (unknown := ~np.isin(wanted, item_ids)).any():
        raise DataError(
            f"{where}: {unknown.sum()} of {len(wanted)} items are not in the catalogue; got "
            f"{wanted[unknown].tolist()[0]!r}. Leave them out, or add them."
        )
    return np.isin(item_ids, wanted)


def best_items(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the k items of the largest scores for each user, best first.

    Args:
        scores: Shape (users, items); -inf is never listed.
        k: Items to list.

    Returns:
        Columns of the scores, shape (users, k); -1 where there are no more.
    """
    count = min(k, scores.shape[1])
    top = torch.from_numpy(scores).topk(count, dim=1)
    lists = np.full((len(scores), k), -1)
    lists[:, :count] = np.where(np.isneginf(top.values.numpy()), -1, top.indices.numpy())
    return lists
