"""Where else an item could go: other prefixes, and what each last code under a prefix would cost.

Both serve any quantizer that decodes prefixes of its codes. Where codes stand for sums of
codewords, matrix products say the same as decoding, hundreds of times faster.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rqtoolkit.functional.assign import (
    DEFAULT_MAX_BYTES,
    chunk_slices,
    half_distances,
    smallest_first,
    sum_codewords,
)
from rqtoolkit.functional.encoding import encode_prefixes
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.grouped import GroupedResidualQuantizer
from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["additive_tables", "last_level_costs", "prefix_candidates"]


def additive_tables(quantizer: Quantizer) -> list[Tensor] | None:
    """Codewords (K, dim) of each code whose sum a vector decodes to; None where it is no sum."""
    if isinstance(quantizer, ResidualQuantizer | GroupedResidualQuantizer):
        return quantizer._codewords()
    return None


@torch.no_grad()
def last_level_costs(
    quantizer: Quantizer, x: Tensor, prefixes: Tensor, *, max_bytes: int = DEFAULT_MAX_BYTES
) -> Tensor:
    """Squared error of each vector with each code of the last level after a given prefix.

    Args:
        quantizer: Any.
        x: Vectors, shape (N, dim), float32.
        prefixes: All codes but the last, shape (N, depth - 1), int64.
        max_bytes: Bound on what is held at once beside the result.

    Returns:
        Squared errors summed over dim, shape (N, codebook size of the last level), float32.
    """
    tables = additive_tables(quantizer)
    if not tables:
        return _decoded_errors(quantizer, x, prefixes[:, None])[:, 0]
    costs = x.new_empty(len(x), len(tables[-1]))
    for rows in chunk_slices(len(x), 8 * (x.shape[1] + costs.shape[1]), max_bytes):
        residuals = x[rows]
        if prefixes.shape[1]:
            residuals = residuals - sum_codewords(prefixes[rows], tables[:-1])
        scores, norms = half_distances(residuals, tables[-1])
        costs[rows] = scores.add_(norms).clamp_(min=0).mul_(2)
    return costs


@torch.no_grad()
def prefix_candidates(
    quantizer: Quantizer, x: Tensor, count: int, *, max_bytes: int = DEFAULT_MAX_BYTES
) -> tuple[Tensor, Tensor]:
    """The prefixes that a beam keeps for each vector, in the order of the best code after each.

    Args:
        quantizer: Any.
        x: Vectors, shape (N, dim), float32.
        count: Prefixes a vector; all of them, where there are no more.
        max_bytes: Bound on what is held at once beside the result.

    Returns:
        Prefixes, shape (N, min(count, all), depth - 1), int64, best first, all different, and
        what they cost, shape (N, min(count, all)), float32: the least squared error of a code
        after the prefix, plus the `penalties` of all of them where the quantizer has some.
    """
    sizes = quantizer.codebook_sizes
    count = min(count, math.prod(sizes[:-1]))
    prefixes = torch.empty(len(x), count, len(sizes) - 1, dtype=torch.int64, device=x.device)
    costs = x.new_empty(len(x), count)
    penalties = _penalties(quantizer)
    bytes_per_row = 4 * count * (4 * max(sizes) + 4 * x.shape[1])
    for rows in chunk_slices(len(x), bytes_per_row, max_bytes):
        kept = _beam(quantizer, x[rows], count, penalties)
        flat = kept.flatten(0, 1)
        repeated = x[rows].repeat_interleave(count, dim=0)
        found = last_level_costs(quantizer, repeated, flat, max_bytes=max_bytes)
        if penalties:
            found += penalties[-1]
            for column, own in zip(flat.T, penalties[:-1], strict=True):
                found += own[column, None]
        least = found.amin(dim=1).view(-1, count)
        best_first = smallest_first(least, count)
        prefixes[rows] = kept.gather(1, best_first[..., None].expand_as(kept))
        costs[rows] = least.gather(1, best_first)
    return prefixes, costs


def _penalties(quantizer: Quantizer) -> list[Tensor] | None:
    """What encoding adds to the squared error for each code, (K,) a level, if anything."""
    own = getattr(quantizer, "penalties", None)
    if own is None or not own.numel():
        return None
    return [row[:size] for row, size in zip(own, quantizer.codebook_sizes, strict=True)]


def _beam(
    quantizer: Quantizer, x: Tensor, count: int, penalties: Sequence[Tensor] | None
) -> Tensor:
    """Prefixes (N, count, depth - 1) of least error, as a beam of that width finds them."""
    levels = len(quantizer.codebook_sizes) - 1
    tables = additive_tables(quantizer)
    if tables and levels:
        shorter = None if penalties is None else penalties[:-1]
        return encode_prefixes(x, tables[:-1], beam=count, penalties=shorter)
    kept = torch.empty(len(x), 1, 0, dtype=torch.int64, device=x.device)
    for size in quantizer.codebook_sizes[:levels]:
        errors = _decoded_errors(quantizer, x, kept).flatten(1)
        chosen = smallest_first(errors, min(count, errors.shape[1]))
        parents = (chosen // size)[..., None].expand(-1, -1, kept.shape[2])
        kept = torch.cat([kept.gather(1, parents), (chosen % size)[..., None]], dim=2)
    return kept


def _decoded_errors(quantizer: Quantizer, x: Tensor, prefixes: Tensor) -> Tensor:
    """Squared errors (N, P, K) of decoding each of some prefixes (N, P, d) with one more code."""
    size = quantizer.codebook_sizes[prefixes.shape[2]]
    last = torch.arange(size, device=x.device)[None, :, None]
    flat = prefixes.flatten(0, 1)
    owners = torch.arange(len(x), device=x.device).repeat_interleave(prefixes.shape[1])
    errors = x.new_empty(len(flat), size)
    for some in chunk_slices(len(flat), 12 * size * x.shape[1], DEFAULT_MAX_BYTES):
        own = flat[some, None].expand(-1, size, -1)
        codes = torch.cat([own, last.expand(len(own), -1, -1)], dim=2)
        errors[some] = (quantizer.decode(codes) - x[owners[some], None]).square().sum(dim=2)
    return errors.view(len(x), -1, size)
