"""Beam search over semantic IDs: the best items under any model, and nothing but items."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.semantic_ids.decoding import compiled_walk, tensor_walk
from rqtoolkit.semantic_ids.decoding.prefix_table import Array, PrefixTable

__all__ = ["Beams", "Step", "beam_search"]

Step = Callable[[Array, Array], Array]
"""A model's next level: log-probabilities (B, P, K) from prefixes (B, P, level) and origins (B, P).

`level` counts the codes so far, from 0; P beams are searched, one at level 0. `origins` says which
of the beams of the call before each one extends: a model that caches reorders its cache by it. The
result may also be flat, (B * P, K), or (B, 1, K) where it is the same for all beams of a user.
Arrays come, and may go, in the kind of the table. Beams that found nothing hold zeros.
"""


class Beams(NamedTuple):
    """What a beam search found for every user, best first.

    Attributes:
        codes: Semantic IDs, shape (B, count, length), int64; -1 past the last one found.
        scores: Sums of log-probabilities, shape (B, count); -inf there.
        rows: Rows of the table's codes, the first of equal ones, shape (B, count), int64; -1 there.
    """

    codes: Array
    scores: Array
    rows: Array


def beam_search(
    step: Step, table: PrefixTable, batch: int, *, beams: int, count: int | None = None
) -> Beams:
    """Return the semantic IDs of a table that score best, by beam search over their codes.

    At every level each user's `beams` best prefixes among those in the table go on. With as many
    beams as the table has items, the search is exhaustive and its result exact. Equal scores go by
    the codes, the smaller first: the result depends on nothing but the scores.

    Where fewer semantic IDs exist, or have a score above -inf, than were asked for, the results end
    with codes and rows of -1 and scores of -inf. An empty table gives only those.

    Args:
        step: The model, see `Step`. It is called once for each level.
        table: The semantic IDs that may be found. A table on an accelerator keeps all work there.
        batch: Users, B.
        beams: Prefixes kept for each user, at least 1.
        count: Semantic IDs to return for each user, at most `beams`; None returns `beams`. Items
            of equal semantic IDs count once: `PrefixTable.all_rows` tells them.

    Raises:
        ConfigError: If count exceeds beams: the search would never find that many.
        ShapeError: If step returns another shape.
        DataError: If it returns a score that is NaN.

    Example:
        >>> table = PrefixTable([[0, 1], [1, 0]], codebook_sizes=(2, 2))
        >>> scores = np.log([[0.5, 0.5], [0.9, 0.1]])       # by level, whatever came before
        >>> beam_search(lambda prefixes, _: scores[None, None, prefixes.shape[-1]], table, 1,
        ...             beams=2).rows
        array([[1, 0]])
    """
    check_count("beam_search", "beams", beams)
    count = beams if count is None else check_count("beam_search", "count", count)
    if count > beams:
        raise ConfigError(
            f"beam_search: count={count} is over beams={beams}, which is all that a search finds. "
            f"Pass beams={count} or more."
        )
    states = table.start(batch).reshape(batch, 1)
    scores, origins = _zeros(states), states
    undefined = []
    for level, (start, end) in enumerate(pairwise(table.level_starts[1:])):
        if start == end:  # an empty table: not even the root is a result
            states, scores = states[:, :0], scores[:, :0]
            break
        added = step(table.prefixes(states, level).clip(min=0), origins)
        added = _check_scores(table, added, states, level)
        width = min(beams, end - start)
        scores, states, origins, nan = _extend(table, scores, states, added, level, width)
        undefined.append(nan)
    # Asked once, as an accelerator has to be waited for.
    if levels := [level for level, nan in enumerate(undefined) if nan]:
        raise DataError(
            f"beam_search: step returned NaN at level {levels[0]} for a code that may follow. "
            "Check the model's output; -inf says that a code is impossible."
        )
    states = _resize(states, count, -1)
    return Beams(
        codes=table.prefixes(states, table.length),
        scores=_resize(scores, count, -np.inf),
        rows=table.rows(states),
    )


def _extend(
    table: PrefixTable, scores: Array, states: Array, added: Array, level: int, width: int
) -> tuple[Array, Array, Array, Any]:
    """Return scores, states and origins (B, width) of the best continuations, and if one is NaN."""
    if table.on_cpu:
        added, offsets, node_codes = (
            np.asarray(array) for array in (added, table.offsets, table.node_codes)
        )
        *kept, undefined = compiled_walk.extend_beams(
            np.asarray(scores).astype(added.dtype, copy=False),
            np.asarray(states),
            added,
            offsets,
            node_codes,
            width,
        )
        if table.device is not None:
            kept = [torch.from_numpy(array) for array in kept]
    else:
        mask = table.mask(states, level=level)
        *kept, undefined = tensor_walk.extend_beams(scores, states, added, mask, *table.keys, width)
    return kept[0], kept[1], kept[2], undefined


def _check_scores(table: PrefixTable, added: Any, states: Array, level: int) -> Array:
    """Return what step gave as (B, P or 1, K) of single or double precision."""
    added = table._own(added)
    batch, width = states.shape
    size = table.codebook_sizes[level]
    if tuple(added.shape) == (batch * width, size):
        added = added.reshape(batch, width, size)
    if tuple(added.shape) not in {(batch, width, size), (batch, 1, size)}:
        raise ShapeError(
            f"beam_search: step has to return shape ({batch}, {width}, {size}) at level {level}; "
            f"got {tuple(added.shape)}."
        )
    if isinstance(added, Tensor):
        single = added.dtype not in (torch.float32, torch.float64)
        return (added.float() if single else added).detach().contiguous()
    single = added.dtype not in (np.float32, np.float64)
    return np.ascontiguousarray(added.astype(np.float32) if single else added)


def _zeros(states: Array) -> Array:
    """Return scores of 0, single precision, where states are."""
    if isinstance(states, Tensor):
        return torch.zeros_like(states, dtype=torch.float32)
    return np.zeros(states.shape, np.float32)


def _resize(array: Array, count: int, value: float) -> Array:
    """Return (B, count) from (B, P), the rest filled with a value."""
    if array.shape[1] >= count:
        return array[:, :count]
    missing = (array.shape[0], count - array.shape[1])
    if isinstance(array, Tensor):
        return torch.cat([array, array.new_full(missing, value)], 1)
    return np.concatenate([array, np.full(missing, value, array.dtype)], 1)
