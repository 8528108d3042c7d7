"""Minimum-cost matching of items and the last codes after their prefix, and what follows it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rqtoolkit.functional.assign import chunk_slices
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids.candidates import (
    additive_tables,
    last_level_costs,
    prefix_candidates,
)
from rqtoolkit.semantic_ids.stacks import (
    Codes,
    TakenCodes,
    place_in_group,
    stack_numbers,
    stacks_of,
)

__all__ = ["CHUNK_BYTES", "Rows", "crowded_buckets", "match_buckets", "relocate", "share_by_rank"]

CHUNK_BYTES = 2**26
"""Of vectors, or of costs, held at a time."""

_OTHER_PREFIXES, _NEAREST = 8, 32  # looked at for an item that gave way, and codes after all those

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


def relocate(
    quantizer: Quantizer,
    rows: Rows,
    codes: Codes,
    items: NDArray[np.int64],
    used: TakenCodes,
) -> None:
    """Move items, in place, to free codes after other prefixes where those are nearer.

    In each round, an item asks for the nearest free stack of codes that beats its own; of several,
    the one that gains most gets it, and the others ask again. Each moves once. Quantizers that
    have to decode every candidate are left alone: it would take hours for a catalogue.

    Args:
        quantizer: Fitted.
        rows: Gives vectors.
        codes: All items' codes by rank, shape (N, depth), all different; changed.
        items: Those that may move, by rank.
        used: Codes of others.
    """
    if not len(items) or additive_tables(quantizer) is None:
        return
    costs, numbers, current = _nearest_stacks(quantizer, rows, codes, items, used.sizes)
    active = np.arange(len(items))
    while len(active):
        occupied = np.sort(np.concatenate([stack_numbers(codes, used.sizes), used.stacks]))
        listed = numbers[active]
        spots = np.searchsorted(occupied, listed).clip(max=len(occupied) - 1)
        free = np.where(occupied[spots] != listed, costs[active], np.inf)
        best = free.argmin(axis=1)
        gains = current[active] - np.take_along_axis(free, best[:, None], axis=1)[:, 0]
        asking = np.flatnonzero(gains > 0)
        wanted = listed[asking, best[asking]]
        order = np.lexsort([asking, -gains[asking], wanted])
        first, asking = place_in_group(wanted[order]) == 0, active[asking[order]]
        codes[items[asking[first]]] = stacks_of(wanted[order][first], used.sizes)
        active = np.sort(asking[~first])


def _nearest_stacks(
    quantizer: Quantizer,
    rows: Rows,
    codes: Codes,
    items: NDArray[np.int64],
    sizes: Sequence[int],
) -> tuple[NDArray, NDArray, NDArray]:
    """Costs and numbers (n, M) of the nearest stacks of codes, and costs (n,) of the current."""
    found = []
    last = torch.arange(sizes[-1])[:, None]
    bytes_per_item = 4 * _OTHER_PREFIXES * (2 * sizes[-1] + quantizer.dim)
    for some in chunk_slices(len(items), bytes_per_item, CHUNK_BYTES):
        x = rows(items[some])
        own = torch.from_numpy(codes[items[some]]).to(x.device)
        current = (x - quantizer.decode(own)).square().sum(dim=1)
        prefixes, _ = prefix_candidates(quantizer, x, _OTHER_PREFIXES)
        count = prefixes.shape[1]
        repeated = x.repeat_interleave(count, dim=0)
        costs = last_level_costs(quantizer, repeated, prefixes.flatten(0, 1)).view(len(x), -1)
        least = costs.topk(min(_NEAREST, costs.shape[1]), dim=1, largest=False)
        places = least.indices.cpu()[..., None]
        before = prefixes.cpu().gather(1, (places // sizes[-1]).expand(-1, -1, prefixes.shape[2]))
        stacks = torch.cat([before, last[places[..., 0] % sizes[-1]]], dim=2).numpy()
        numbers = stack_numbers(stacks.reshape(-1, len(sizes)), sizes).reshape(len(x), -1)
        found.append((least.values.cpu().numpy(), numbers, current.cpu().numpy()))
    nearest, all_numbers, errors = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return nearest, all_numbers, errors


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
