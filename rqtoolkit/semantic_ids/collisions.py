"""A code stack for every item of its own, by matching, by counting, or not.

Items are worked on in the order of their ids, whatever order their rows come in, so that rounding
and ties fall the same way each time: the result for given codebooks does not depend on row order.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.assign import chunk_slices
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids.candidates import last_level_costs, prefix_candidates

__all__ = ["Collisions", "add_counters", "match_codes", "place_new"]

Collisions = Literal["match", "token", "allow"]
"""What to do about items of equal codes: match them to free ones, count them, or leave them."""

_CHUNK_BYTES = 2**26  # of vectors, or of costs
_FIRST_PREFIXES, _MORE_PREFIXES = 8, 8  # other places looked at for an item; how many times more
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")

Codes = NDArray[np.int64]
Rows = Callable[[NDArray[np.int64] | slice], Tensor]
"""Vectors (n, dim), float32 where the quantizer is, of some items by the rank of their ids."""


def place_new(
    quantizer: Quantizer,
    x: NDArray | Tensor,
    order: NDArray[np.int64],
    taken: Codes,
    policy: Collisions,
    *,
    progress: Progress | None = None,
) -> Codes:
    """Codes of items that are new beside others, whose codes stay as they are.

    Args:
        quantizer: Fitted.
        x: Vectors of the new items, shape (N, dim).
        order: Rank of each item's id among the new ones, shape (N,), all different.
        taken: Codes that are given already, now or formerly, shape (M, length); M may be 0.
        policy: "match" gives each item free codes of its own, "token" adds a counter that goes on
            from the largest given, "allow" lets items share codes.
        progress: Told how far the matching is.

    Returns:
        Codes, shape (N, length), int64; length is depth, with "token" depth + 1.

    Raises:
        ShapeError: If the shapes do not fit together.
        ConfigError: If the policy is unknown.
        DataError: If there are fewer free codes than items to match.
    """
    if policy == "match":
        return match_codes(quantizer, x, order, taken=taken, progress=progress)
    if policy not in ("token", "allow"):
        raise ConfigError(
            f"place_new: policy={policy!r} is unknown. Choose 'match', 'token' or 'allow'."
        )
    rows, by_rank = _by_rank("place_new", quantizer, x, order)
    codes = np.empty((len(by_rank), len(quantizer.codebook_sizes)), dtype=np.int64)
    codes[by_rank] = _encode(quantizer, rows, len(by_rank))
    return codes if policy == "allow" else add_counters(codes, order, taken=taken)


def add_counters(codes: Codes, order: NDArray[np.int64], *, taken: Codes | None = None) -> Codes:
    """Add one more code to each stack, which counts the items of equal codes from 0.

    Args:
        codes: Shape (N, depth), integers from 0.
        order: Rank of each item's id, shape (N,), all different: items are counted in this order.
        taken: Codes with counters that are given already, shape (M, depth + 1); counting goes on
            from the largest of each stack.

    Returns:
        Codes, shape (N, depth + 1), int64, all different and none of them taken.

    Raises:
        ShapeError: If the shapes do not fit together.

    References:
        Rajput et al., "Recommender Systems with Generative Retrieval", NeurIPS 2023, section 3.1.
        https://arxiv.org/abs/2305.05065
    """
    taken = np.empty((0, codes.shape[1] + 1), np.int64) if taken is None else taken
    _check_shapes("add_counters", codes, order, taken, codes.shape[1] + 1)
    together = np.concatenate([taken[:, :-1], codes])
    _, stacks = np.unique(
        _numbers(together, together.max(axis=0, initial=0) + 1), return_inverse=True
    )
    given, own = stacks[: len(taken)], stacks[len(taken) :]
    next_counter = np.zeros(len(together), dtype=np.int64)
    np.maximum.at(next_counter, given, taken[:, -1] + 1)
    sequence = np.lexsort([order, own])
    counters = np.empty(len(codes), dtype=np.int64)
    counters[sequence] = _place_in_group(own[sequence])
    return np.column_stack([codes, counters + next_counter[own]])


def match_codes(
    quantizer: Quantizer,
    x: NDArray | Tensor,
    order: NDArray[np.int64],
    *,
    taken: Codes | None = None,
    progress: Progress | None = None,
) -> Codes:
    """Codes of which no two items have the same, by minimum-cost matching of the last level.

    Items are encoded; where some with a common prefix collide, the last codes of all items with
    this prefix are matched anew, at the least squared error in total. Of more items than the last
    level has codes, those that lose least by it move on to their next best prefix first.
    Among identical vectors, those of lower rank get the better codes.

    Args:
        quantizer: Fitted.
        x: Vectors, shape (N, dim), numpy (also memory-mapped) or torch.
        order: Rank of each item's id, shape (N,), all different. Rows may come in any order.
        taken: Codes that no item may have, shape (M, depth).
        progress: Told how far the matching is.

    Returns:
        Codes, shape (N, depth), int64, all different.

    Raises:
        ShapeError: If the shapes do not fit together.
        DataError: If there are fewer free codes than items.

    References:
        Crouse, "On Implementing 2D Rectangular Assignment Algorithms", IEEE Transactions on
        Aerospace and Electronic Systems 2016 (the matching).
        https://doi.org/10.1109/TAES.2016.140952
        Gale & Shapley, "College Admissions and the Stability of Marriage", The American
        Mathematical Monthly 1962 (moving on). https://doi.org/10.2307/2312726
    """
    sizes = quantizer.codebook_sizes
    taken = np.empty((0, len(sizes)), np.int64) if taken is None else taken
    rows, by_rank = _by_rank("match_codes", quantizer, x, order)
    _check_shapes("match_codes", x, order, taken, len(sizes))
    _check_room(len(by_rank), len(taken), sizes)

    codes = _encode(quantizer, rows, len(by_rank))
    used = _Used(taken, sizes)
    moved = _spill(quantizer, rows, codes, used)
    crowded = _crowded(codes, used, sizes, moved)
    _match_buckets(quantizer, rows, codes, crowded, used, progress)
    _share_by_rank(quantizer, rows, codes, crowded)

    result = np.empty_like(codes)
    result[by_rank] = codes
    return result


class _Used:
    """Which last codes are taken after each prefix: sorted, to look up a whole array at once."""

    def __init__(self, taken: Codes, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        order = np.lexsort(taken.T[::-1])
        self.last = taken[order, -1]
        self.prefixes = _numbers(taken[order, :-1], sizes[:-1])
        self.stacks = _numbers(taken[order], sizes)

    def room(self, prefixes: NDArray) -> NDArray[np.int64]:
        """Free codes after each prefix, by its number."""
        begins, ends = (np.searchsorted(self.prefixes, prefixes, side) for side in _SIDES)
        return self.sizes[-1] - (ends - begins)

    def last_codes(self, prefixes: NDArray) -> list[NDArray[np.int64]]:
        """Taken codes after each prefix, by its number."""
        begins, ends = (np.searchsorted(self.prefixes, prefixes, side) for side in _SIDES)
        return [self.last[b:e] for b, e in zip(begins, ends, strict=True)]


def _by_rank(
    where: str, quantizer: Quantizer, x: NDArray | Tensor, order: NDArray[np.int64]
) -> tuple[Rows, NDArray[np.int64]]:
    """Return a function that gives vectors by rank, and the row of each rank."""
    if x.ndim != 2 or x.shape[1] != quantizer.dim or order.shape != x.shape[:1]:
        raise ShapeError(
            f"{where}: x has to have shape (N, {quantizer.dim}), and order (N,); got "
            f"{tuple(x.shape)} and {order.shape}."
        )
    by_rank = np.argsort(order, kind="stable")
    device = next(iter(quantizer.state_dict().values())).device

    def rows(ranks: NDArray[np.int64] | slice) -> Tensor:
        own = by_rank[ranks]
        some = x[torch.from_numpy(own).to(x.device)] if isinstance(x, Tensor) else x[own]
        return torch.as_tensor(some).to(device, torch.float32)

    return rows, by_rank


def _check_shapes(
    where: str, x: NDArray | Tensor, order: NDArray, taken: NDArray, length: int
) -> None:
    if order.shape != x.shape[:1] or taken.ndim != 2 or taken.shape[1] != length:
        raise ShapeError(
            f"{where}: {len(x)} items need order of shape ({len(x)},) and taken of shape "
            f"(M, {length}); got {order.shape} and {taken.shape}."
        )


def _check_room(items: int, taken: int, sizes: Sequence[int]) -> None:
    """Refuse more items than there are codes."""
    if items + taken > math.prod(sizes):
        raise DataError(
            f"match_codes: {items} items do not fit into the {math.prod(sizes)} codes of "
            f"codebook_sizes={tuple(sizes)}, of which {taken} are taken. Fit with a larger "
            "codebook_size or depth, or choose collisions='token'."
        )


def _encode(quantizer: Quantizer, rows: Rows, count: int) -> Codes:
    """Codes (N, depth) of all items, by rank."""
    codes = np.empty((count, len(quantizer.codebook_sizes)), dtype=np.int64)
    for some in chunk_slices(count, 4 * quantizer.dim, _CHUNK_BYTES):
        codes[some] = quantizer.encode(rows(some)).cpu().numpy()
    return codes


def _numbers(codes: Codes, sizes: Sequence[int]) -> NDArray:
    """One sortable value (N,) for each stack of codes (N, d): in 64 bits, or as bytes if longer."""
    if math.prod(int(size) for size in sizes) >= 2**63:
        width = 4 * codes.shape[1]
        return np.ascontiguousarray(codes.astype(">u4")).view(f"S{width}")[:, 0]
    numbers = np.zeros(len(codes), dtype=np.int64)
    for column, size in zip(codes.T, sizes, strict=True):
        numbers = numbers * int(size) + column
    return numbers


def _place_in_group(groups: NDArray) -> NDArray[np.int64]:
    """How many before it are of the same group, for each element (N,) of sorted groups."""
    begins = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]][: len(groups)])
    lengths = np.diff(np.r_[begins, len(groups)])
    return np.arange(len(groups)) - np.repeat(begins, lengths)


def _spill(quantizer: Quantizer, rows: Rows, codes: Codes, used: _Used) -> NDArray[np.bool_]:
    """Change, in place, prefixes of items where more share one than have room; say whose."""
    sizes = used.sizes
    own = _numbers(codes[:, :-1], sizes[:-1])
    every, count = math.prod(sizes[:-1]), _FIRST_PREFIXES
    while (found := _deferred(quantizer, rows, own, used, min(count, every))) is None:
        count *= _MORE_PREFIXES
    moved = found != own
    codes[moved, :-1] = _stacks(found[moved], sizes[:-1])
    return moved


def _deferred(
    quantizer: Quantizer, rows: Rows, own: NDArray, used: _Used, count: int
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
            found = _preferences(quantizer, rows, new, count, used.sizes)
            lists, losses = (
                np.concatenate(both) for both in zip((lists, losses), found, strict=True)
            )
            place[new] = lists[listed[new], 0]
            continue
        loss = losses[listed[pressed], turn[pressed]]
        pressed = pressed[np.lexsort([pressed, -loss, which[pressed]])]
        refused = pressed[_place_in_group(which[pressed]) >= room[which[pressed]]]
        turn[refused] += 1
        if turn[refused].max() >= count - (count < every):
            return None
        place[refused] = lists[listed[refused], turn[refused]]


def _preferences(
    quantizer: Quantizer, rows: Rows, items: NDArray[np.int64], count: int, sizes: Sequence[int]
) -> tuple[NDArray, NDArray[np.float32]]:
    """Prefixes (n, count) of items, best first, and what going on to the next one costs."""
    numbers, losses = [], []
    for some in chunk_slices(len(items), 8 * count * len(sizes), _CHUNK_BYTES):
        prefixes, costs = prefix_candidates(quantizer, rows(items[some]), count)
        stacks = prefixes.flatten(0, 1).cpu().numpy()
        numbers.append(_numbers(stacks, sizes[:-1]).reshape(-1, count))
        following = torch.cat([costs[:, 1:], costs[:, -1:]], dim=1)
        losses.append((following - costs).cpu().numpy())
    return np.concatenate(numbers), np.concatenate(losses)


def _stacks(numbers: NDArray, sizes: Sequence[int]) -> Codes:
    """Undo `_numbers`."""
    if numbers.dtype.kind == "S":
        wide = np.ascontiguousarray(numbers)[:, None].view(">u4")
        return wide.astype(np.int64)
    columns = np.empty((len(numbers), len(sizes)), dtype=np.int64)
    for level in reversed(range(len(sizes))):
        numbers, columns[:, level] = np.divmod(numbers, int(sizes[level]))
    return columns


def _crowded(
    codes: Codes, used: _Used, sizes: Sequence[int], moved: NDArray[np.bool_]
) -> list[NDArray[np.int64]]:
    """Items, by rank, of each prefix under which codes collide or an item has moved in."""
    stacks, prefixes = _numbers(codes, sizes), _numbers(codes[:, :-1], sizes[:-1])
    _, which, sharing = np.unique(stacks, return_inverse=True, return_counts=True)
    wanting = moved | (sharing > 1)[which] | np.isin(stacks, used.stacks)
    affected = np.isin(prefixes, prefixes[wanting])
    items = np.flatnonzero(affected)
    items = items[np.argsort(prefixes[items], kind="stable")]
    begins = np.flatnonzero(_place_in_group(prefixes[items]) == 0)
    return np.split(items, begins[1:]) if len(items) else []


def _match_buckets(
    quantizer: Quantizer,
    rows: Rows,
    codes: Codes,
    buckets: Sequence[NDArray[np.int64]],
    used: _Used,
    progress: Progress | None,
) -> None:
    """Give the items of each bucket last codes that are free, at the least total error."""
    ends = np.cumsum([len(bucket) for bucket in buckets])
    step = _CHUNK_BYTES // (8 * (used.sizes[-1] + quantizer.dim))
    first = 0
    while first < len(buckets):
        begin = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begin + step, "right")))
        items = np.concatenate(buckets[first:last])
        prefixes = torch.from_numpy(codes[items, :-1])
        x = rows(items)
        costs = last_level_costs(quantizer, x, prefixes.to(x.device)).cpu().numpy()
        bucket_starts = np.r_[begin, ends[first : last - 1]] - begin
        numbers = _numbers(codes[items[bucket_starts], :-1], used.sizes[:-1])
        for bucket, start, forbidden in zip(
            buckets[first:last], bucket_starts, used.last_codes(numbers), strict=True
        ):
            own = costs[start : start + len(bucket)]
            own[:, forbidden] = np.inf
            codes[bucket, -1] = linear_sum_assignment(own)[1]
        first = last
        report(progress, "matching", int(ends[last - 1]), int(ends[-1]))


def _share_by_rank(
    quantizer: Quantizer, rows: Rows, codes: Codes, buckets: Sequence[NDArray[np.int64]]
) -> None:
    """Hand the codes of identical vectors out anew, better ones to lower ranks."""
    if not buckets:
        return
    items = np.sort(np.concatenate(buckets))
    marks = np.empty(len(items), dtype=np.uint64)
    weights = np.random.default_rng(0).integers(2**64, size=quantizer.dim, dtype=np.uint64) | 1
    for some in chunk_slices(len(items), 12 * quantizer.dim, _CHUNK_BYTES):
        bits = rows(items[some]).cpu().numpy().view(np.uint32)
        marks[some] = bits.astype(np.uint64) @ weights
    _, which, alike = np.unique(marks, return_inverse=True, return_counts=True)
    items, which = items[(alike > 1)[which]], which[(alike > 1)[which]]
    errors = np.empty(len(items))
    for some in chunk_slices(len(items), 12 * quantizer.dim, _CHUNK_BYTES):
        x = rows(items[some])
        decoded = quantizer.decode(torch.from_numpy(codes[items[some]]).to(x.device))
        errors[some] = (x - decoded).double().square().sum(dim=1).cpu().numpy()
    by_error, by_rank = np.lexsort([items, errors, which]), np.lexsort([items, which])
    codes[items[by_rank]] = codes[items[by_error]]
