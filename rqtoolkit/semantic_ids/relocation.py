"""Items that gave way in the matching move on to free codes that are nearer, after any prefix."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.functional.assign import chunk_slices, sum_codewords
from rqtoolkit.functional.encoding import encode_prefixes
from rqtoolkit.functional.kernels.compiled import compiled
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids.candidates import additive_tables
from rqtoolkit.semantic_ids.matching import CHUNK_BYTES, Rows
from rqtoolkit.semantic_ids.stacks import Codes, TakenCodes, stack_numbers, stacks_of

__all__ = ["relocate"]

_NEAREST = 32  # stacks of codes looked at for each item
_FARTHEST = 4 * _NEAREST  # the same, for items whose first code has too many
_PASSES = 8


def relocate(
    quantizer: Quantizer,
    rows: Rows,
    codes: Codes,
    items: NDArray[np.int64],
    used: TakenCodes,
    *,
    limit: int | None = None,
) -> None:
    """Move items, in place, to free stacks of codes that are nearer than their own.

    Whoever gains most chooses first, and each moves once. What the moves leave free is offered to
    the others in a further pass. At last, first codes with more items than the limit give up those
    that lose least by it, as far as others have room. Quantizers that have to decode every
    candidate are left alone: it would take hours for a catalogue.

    Args:
        quantizer: Fitted.
        rows: Gives vectors.
        codes: All items' codes by rank, shape (N, depth), all different; changed.
        items: Those that may move, by rank.
        used: Codes of others.
        limit: Items that no first code has to have more of; None for as many as there are.
    """
    if additive_tables(quantizer) is None:
        return
    most = len(codes) if limit is None else limit
    if len(items):
        found = _nearer_stacks(quantizer, rows, codes, items, used.sizes, _NEAREST)
        _move(codes, items, *found, used, most, least_gain=0.0)
    crowded = np.bincount(codes[:, 0], minlength=used.sizes[0]) > most
    items = np.flatnonzero(crowded[codes[:, 0]])
    if len(items):
        found = _nearer_stacks(quantizer, rows, codes, items, used.sizes, _FARTHEST)
        _move(codes, items, *found, used, most, least_gain=-np.inf)


def _move(
    codes: Codes,
    items: NDArray[np.int64],
    numbers: NDArray,
    gains: NDArray[np.float32],
    used: TakenCodes,
    most: int,
    *,
    least_gain: float,
) -> None:
    """Move items to free stacks of those listed: for a gain, or else out of what is crowded."""
    counts = np.bincount(codes[:, 0], minlength=used.sizes[0])
    waiting = np.flatnonzero((gains > least_gain).any(axis=1))
    for _ in range(_PASSES):
        occupied = np.sort(np.concatenate([stack_numbers(codes, used.sizes), used.stacks]))
        listed, gained = numbers[waiting], gains[waiting]
        spots = np.searchsorted(occupied, listed).clip(max=len(occupied) - 1)
        asking, option = np.nonzero((occupied[spots] != listed) & (gained > least_gain))
        if not len(asking):
            break
        wanted, stacks = np.unique(listed[asking, option], return_inverse=True)
        order = np.lexsort((option, asking, -gained[asking, option]))
        given = _give(
            asking[order],
            stacks[order],
            codes[items[waiting], 0],
            stacks_of(wanted, used.sizes)[:, 0],
            counts,
            most,
            least_gain < 0,
        )
        moving = given >= 0
        if not moving.any():
            break
        codes[items[waiting[moving]]] = stacks_of(wanted[given[moving]], used.sizes)
        waiting = waiting[~moving]


def _nearer_stacks(
    quantizer: Quantizer,
    rows: Rows,
    codes: Codes,
    items: NDArray[np.int64],
    sizes: Sequence[int],
    nearest: int,
) -> tuple[NDArray, NDArray[np.float32]]:
    """Numbers (n, M) of the stacks of codes that a beam finds, and what each gains on the own."""
    tables = additive_tables(quantizer) or []
    all_numbers, gains = [], []
    for some in chunk_slices(len(items), 8 * nearest * quantizer.dim, CHUNK_BYTES):
        x, own = rows(items[some]), codes[items[some]]
        found = encode_prefixes(x, tables, beam=nearest)
        stacks = np.concatenate([own[:, None], found.cpu().numpy()], axis=1)
        flat = found.new_tensor(stacks).flatten(0, 1)
        decoded = sum_codewords(flat, tables).view(*stacks.shape[:2], -1)
        errors = (x[:, None] - decoded).square_().sum(dim=2).cpu().numpy()
        all_numbers.append(stack_numbers(stacks[:, 1:].reshape(-1, len(sizes)), sizes))
        gains.append(errors[:, :1] - errors[:, 1:])
    together = np.concatenate(gains)
    return np.concatenate(all_numbers).reshape(together.shape), together


@compiled
def _give(
    asking: NDArray[np.int64],
    stacks: NDArray[np.int64],
    own_first: NDArray[np.int64],
    first: NDArray[np.int64],
    counts: NDArray[np.int64],
    most: int,
    relieving: bool,
) -> NDArray[np.int64]:
    """Go through wishes in order; return the stack (items,) that each item gets, -1 for none.

    Items with each first code are counted, in place. None comes to have more than `most` by a move;
    to relieve, only what has more gives up items.
    """
    given, gone = np.full(len(own_first), -1), np.zeros(len(first), np.bool_)
    for wish in range(len(asking)):
        item, stack = asking[wish], stacks[wish]
        if given[item] >= 0 or gone[stack]:
            continue
        old, new = own_first[item], first[stack]
        if old != new and counts[new] >= most:
            continue
        if relieving and (old == new or counts[old] <= most):
            continue
        counts[old] -= 1
        counts[new] += 1
        given[item] = stack
        gone[stack] = True
    return given
