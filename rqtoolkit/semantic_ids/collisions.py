"""A code stack for every item of its own, by matching, by counting, or not.

Items are worked on in the order of their ids, whatever order their rows come in, so that rounding
and ties fall the same way each time: the result for given codebooks does not depend on row order.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.assign import chunk_slices
from rqtoolkit.functional.progress import Progress
from rqtoolkit.quantizers.autoencoder import ResidualAutoencoder
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids.matching import (
    CHUNK_BYTES,
    Rows,
    crowded_buckets,
    match_buckets,
    share_by_rank,
)
from rqtoolkit.semantic_ids.relocation import relocate
from rqtoolkit.semantic_ids.spilling import spill
from rqtoolkit.semantic_ids.stacks import Codes, TakenCodes, place_in_group, stack_numbers

__all__ = ["Collisions", "add_counters", "match_codes", "place_new"]

Collisions = Literal["match", "token", "allow"]
"""What to do about items of equal codes: match them to free ones, count them, or leave them."""


def place_new(
    quantizer: Quantizer,
    x: NDArray | Tensor,
    order: NDArray[np.int64],
    taken: Codes,
    policy: Collisions,
    *,
    limit: int | None = None,
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
        limit: As in `match_codes`.
        progress: Told how far the matching is.

    Returns:
        Codes, shape (N, length), int64; length is depth, with "token" depth + 1.

    Raises:
        ShapeError: If the shapes do not fit together.
        ConfigError: If the policy is unknown.
        DataError: If there are fewer free codes than items to match.
    """
    if policy == "match":
        return match_codes(quantizer, x, order, taken=taken, limit=limit, progress=progress)
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
        stack_numbers(together, together.max(axis=0, initial=0) + 1), return_inverse=True
    )
    given, own = stacks[: len(taken)], stacks[len(taken) :]
    next_counter = np.zeros(len(together), dtype=np.int64)
    np.maximum.at(next_counter, given, taken[:, -1] + 1)
    sequence = np.lexsort([order, own])
    counters = np.empty(len(codes), dtype=np.int64)
    counters[sequence] = place_in_group(own[sequence])
    return np.column_stack([codes, counters + next_counter[own]])


def match_codes(
    quantizer: Quantizer,
    x: NDArray | Tensor,
    order: NDArray[np.int64],
    *,
    taken: Codes | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Codes:
    """Codes of which no two items have the same, by minimum-cost matching of the last level.

    Items are encoded; where some with a common prefix collide, the last codes of all items with
    this prefix are matched anew, at the least squared error in total. Of more items than the last
    level has codes, those that lose least by it move on to their next best prefix first. At last,
    items that had to give way move to free codes after another prefix where those are nearer.
    Among identical vectors, those of lower rank get the better codes. Errors are those of
    decoding, of a `ResidualAutoencoder` those of its latents, by which it encodes.

    Args:
        quantizer: Fitted.
        x: Vectors, shape (N, dim), numpy (also memory-mapped) or torch.
        order: Rank of each item's id, shape (N,), all different. Rows may come in any order.
        taken: Codes that no item may have, shape (M, depth).
        limit: Items that a first code should not have more of. Those it has too many move on to
            free codes near by, where there are any; otherwise it is exceeded.
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
    if isinstance(quantizer, ResidualAutoencoder):
        rows, quantizer = _latent_rows(quantizer, rows), quantizer.quantizer
    _check_shapes("match_codes", x, order, taken, len(sizes))
    _check_room(len(by_rank), len(taken), sizes)

    raw = _encode(quantizer, rows, len(by_rank))
    codes, used = raw.copy(), TakenCodes(taken, sizes)
    moved = spill(quantizer, rows, codes, used)
    buckets = crowded_buckets(codes, used, moved)
    match_buckets(quantizer, rows, codes, buckets, used, progress)
    relocate(quantizer, rows, codes, np.flatnonzero((codes != raw).any(axis=1)), used, limit=limit)
    share_by_rank(quantizer, rows, codes, buckets)

    result = np.empty_like(codes)
    result[by_rank] = codes
    return result


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


def _latent_rows(autoencoder: ResidualAutoencoder, rows: Rows) -> Rows:
    """Return a function that gives latents, in which an autoencoder's codes are sums."""
    return lambda ranks: autoencoder.latents(rows(ranks))


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
    for some in chunk_slices(count, 4 * quantizer.dim, CHUNK_BYTES):
        codes[some] = quantizer.encode(rows(some)).cpu().numpy()
    return codes
