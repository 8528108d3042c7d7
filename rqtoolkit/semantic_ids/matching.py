"""Minimum-cost matching of items and the last codes after their prefix."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rqtoolkit.functional.assign import chunk_slices
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids.candidates import last_level_costs
from rqtoolkit.semantic_ids.stacks import Codes, TakenCodes, place_in_group, stack_numbers

__all__ = ["CHUNK_BYTES", "Rows", "crowded_buckets", "match_buckets", "share_by_rank"]

CHUNK_BYTES = 2**26
"""Of vectors, or of costs, held at a time."""

Rows = Callable[[NDArray[np.int64] | slice], Tensor]
"""Vectors (n, dim), float32 where the quantizer is, of some items by the rank of their ids."""


def crowded_buckets(
    codes: Codes, used: TakenCodes, moved: NDArray[np.bool_]
) -> list[NDArray[np.int64]]:
    """Items, by rank, of each prefix under which codes collide or an item has moved in."""
    stacks = stack_numbers(codes, used.sizes)
    prefixes = stack_numbers(codes[:, :-1], used.sizes[:-1])
    _, which, sharing = np.unique(stacks, return_inverse=True, return_counts=True)
    wanting = moved | (sharing > 1)[which] | np.isin(stacks, used.stacks)
    affected = np.isin(prefixes, prefixes[wanting])
    items = np.flatnonzero(affected)
    items = items[np.argsort(prefixes[items], kind="stable")]
    begins = np.flatnonzero(place_in_group(prefixes[items]) == 0)
    return np.split(items, begins[1:]) if len(items) else []


def match_buckets(
    quantizer: Quantizer,
    rows: Rows,
    codes: Codes,
    buckets: Sequence[NDArray[np.int64]],
    used: TakenCodes,
    progress: Progress | None,
) -> None:
    """Give the items of each bucket last codes that are free, at the least total error."""
    ends = np.cumsum([len(bucket) for bucket in buckets])
    step = CHUNK_BYTES // (8 * (used.sizes[-1] + quantizer.dim))
    first = 0
    while first < len(buckets):
        begin = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begin + step, "right")))
        items = np.concatenate(buckets[first:last])
        prefixes = torch.from_numpy(codes[items, :-1])
        x = rows(items)
        costs = last_level_costs(quantizer, x, prefixes.to(x.device)).cpu().numpy()
        bucket_starts = np.r_[begin, ends[first : last - 1]] - begin
        numbers = stack_numbers(codes[items[bucket_starts], :-1], used.sizes[:-1])
        for bucket, start, forbidden in zip(
            buckets[first:last], bucket_starts, used.last_codes(numbers), strict=True
        ):
            own = costs[start : start + len(bucket)]
            own[:, forbidden] = np.inf
            codes[bucket, -1] = linear_sum_assignment(own)[1]
        first = last
        report(progress, "matching", int(ends[last - 1]), int(ends[-1]))


def share_by_rank(
    quantizer: Quantizer, rows: Rows, codes: Codes, buckets: Sequence[NDArray[np.int64]]
) -> None:
    """Hand the codes of identical vectors out anew, better ones to lower ranks."""
    if not buckets:
        return
    items = np.sort(np.concatenate(buckets))
    marks = np.empty(len(items), dtype=np.uint64)
    weights = np.random.default_rng(0).integers(2**64, size=quantizer.dim, dtype=np.uint64) | 1
    for some in chunk_slices(len(items), 12 * quantizer.dim, CHUNK_BYTES):
        bits = rows(items[some]).cpu().numpy().view(np.uint32)
        marks[some] = bits.astype(np.uint64) @ weights
    _, which, alike = np.unique(marks, return_inverse=True, return_counts=True)
    items, which = items[(alike > 1)[which]], which[(alike > 1)[which]]
    errors = np.empty(len(items))
    for some in chunk_slices(len(items), 12 * quantizer.dim, CHUNK_BYTES):
        x = rows(items[some])
        decoded = quantizer.decode(torch.from_numpy(codes[items[some]]).to(x.device))
        errors[some] = (x - decoded).double().square().sum(dim=1).cpu().numpy()
    by_error, by_rank = np.lexsort([items, errors, which]), np.lexsort([items, which])
    codes[items[by_rank]] = codes[items[by_error]]
