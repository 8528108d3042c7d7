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
_PASSES = 8


def relocate(
    quantizer: Quantizer,
    rows: Rows,
    codes: Codes,
    items: NDArray[np.int64],
    used: TakenCodes,
) -> None:
    """Move items, in place, to free stacks of codes that are nearer than their own.

    Whoever gains most chooses first, and each moves once. What the moves leave free is offered to
    the others in a further pass. Quantizers that have to decode every candidate are left alone: it
    would take hours for a catalogue.

    Args:
        quantizer: Fitted.
        rows: Gives vectors.
        codes: All items' codes by rank, shape (N, depth), all different; changed.
        items: Those that may move, by rank.
        used: Codes of others.
    """
    if not len(items) or additive_tables(quantizer) is None:
        return
    numbers, gains = _nearer_stacks(quantizer, rows, codes, items, used.sizes)
    waiting = np.flatnonzero((gains > 0).any(axis=1))
    for _ in range(_PASSES):
        occupied = np.sort(np.concatenate([stack_numbers(codes, used.sizes), used.stacks]))
        listed, gained = numbers[waiting], gains[waiting]
        spots = np.searchsorted(occupied, listed).clip(max=len(occupied) - 1)
        asking, option = np.nonzero((occupied[spots] != listed) & (gained > 0))
        if not len(asking):
            break
        wanted, stacks = np.unique(listed[asking, option], return_inverse=True)
        order = np.lexsort((option, asking, -gained[asking, option]))
        given = _give(asking[order], stacks[order], len(waiting), len(wanted))
        moving = given >= 0
        codes[items[waiting[moving]]] = stacks_of(wanted[given[moving]], used.sizes)
        waiting = waiting[~moving]


def _nearer_stacks(
    quantizer: Quantizer,
    rows: Rows,
    codes: Codes,
    items: NDArray[np.int64],
    sizes: Sequence[int],
) -> tuple[NDArray, NDArray[np.float32]]:
    """Numbers (n, M) of the stacks of codes that a beam finds, and what each gains on the own."""
    tables = additive_tables(quantizer) or []
    all_numbers, gains = [], []
    for some in chunk_slices(len(items), 8 * _NEAREST * quantizer.dim, CHUNK_BYTES):
        x, own = rows(items[some]), codes[items[some]]
        found = encode_prefixes(x, tables, beam=_NEAREST)
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
    asking: NDArray[np.int64], stacks: NDArray[np.int64], items: int, count: int
) -> NDArray[np.int64]:
    """Go through wishes in order; return the stack (items,) that each item gets, -1 for none."""
    given, gone = np.full(items, -1), np.zeros(count, np.bool_)
    for wish in range(len(asking)):
        if given[asking[wish]] < 0 and not gone[stacks[wish]]:
            given[asking[wish]] = stacks[wish]
            gone[stacks[wish]] = True
    return given
