"""Where items go whose prefix has more of them than the last level has codes."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from rqtoolkit.functional.assign import chunk_slices
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids.candidates import prefix_candidates
from rqtoolkit.semantic_ids.matching import CHUNK_BYTES, Rows
from rqtoolkit.semantic_ids.stacks import (
    Codes,
    TakenCodes,
    place_in_group,
    stack_numbers,
    stacks_of,
)

__all__ = ["spill"]

_FIRST_PREFIXES, _MORE_PREFIXES = 8, 8  # other places looked at for an item; how many times more


def spill(quantizer: Quantizer, rows: Rows, codes: Codes, used: TakenCodes) -> NDArray[np.bool_]:
    """Change, in place, prefixes of items where more share one than have room; say whose."""
    sizes = used.sizes
    own = stack_numbers(codes[:, :-1], sizes[:-1])
    every, count = math.prod(sizes[:-1]), _FIRST_PREFIXES
    while (found := _deferred(quantizer, rows, own, used, min(count, every))) is None:
        count *= _MORE_PREFIXES
    moved = found != own
    codes[moved, :-1] = stacks_of(found[moved], sizes[:-1])
    return moved


def _deferred(
    quantizer: Quantizer, rows: Rows, own: NDArray, used: TakenCodes, count: int
) -> NDArray | None:
    """Prefixes by deferred acceptance; None where an item found no place among `count`.

    An item of an overfull prefix turns to its prefixes in order. Each of them keeps, of all that
    have turned to it so far, those that lose most by going on, then those of lower rank.
    """
    every = math.prod(used.sizes[:-1])
    place, turn = own.copy(), np.zeros(len(own), dtype=np.int64)
    listed = np.full(len(own), -1)  # where an item's prefixes are in the lists
    lists, losses = own[:0, None].repeat(count, axis=1), np.empty((0, count), np.float32)
    while True:
        prefixes, which, sharing = np.unique(place, return_inverse=True, return_counts=True)
        room = used.room(prefixes)
        pressed = np.flatnonzero((sharing > room)[which])
        if not len(pressed):
            return place
        if len(new := pressed[listed[pressed] < 0]):
            listed[new] = len(lists) + np.arange(len(new))
            found = _preferences(quantizer, rows, new, count, used)
            lists, losses = (
                np.concatenate(both) for both in zip((lists, losses), found, strict=True)
            )
            place[new] = lists[listed[new], 0]
            continue
        loss = losses[listed[pressed], turn[pressed]]
        pressed = pressed[np.lexsort([pressed, -loss, which[pressed]])]
        refused = pressed[place_in_group(which[pressed]) >= room[which[pressed]]]
        turn[refused] += 1
        if turn[refused].max() >= count - (count < every):
            return None
        place[refused] = lists[listed[refused], turn[refused]]


def _preferences(
    quantizer: Quantizer, rows: Rows, items: NDArray[np.int64], count: int, used: TakenCodes
) -> tuple[NDArray, NDArray[np.float32]]:
    """Prefixes (n, count) of items, best first, and what going on to the next one costs."""
    numbers, losses = [], []
    for some in chunk_slices(len(items), 8 * count * len(used.sizes), CHUNK_BYTES):
        prefixes, costs = prefix_candidates(quantizer, rows(items[some]), count)
        stacks = prefixes.flatten(0, 1).cpu().numpy()
        numbers.append(stack_numbers(stacks, used.sizes[:-1]).reshape(-1, count))
        following = torch.cat([costs[:, 1:], costs[:, -1:]], dim=1)
        losses.append((following - costs).cpu().numpy())
    return np.concatenate(numbers), np.concatenate(losses)
