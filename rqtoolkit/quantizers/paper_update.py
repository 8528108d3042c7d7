"""The codebook update of the paper's authors, step by step as in their code.

Kept for runs that are to be comparable with theirs. A table is written after every level, so that
deeper levels see one that has moved, a shared one as many times a step as there are levels; and an
entry lives on when its moving count is 1 or more, however many vectors there are.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rqtoolkit.functional.assign import nearest_codes
from rqtoolkit.quantizers.codebook import CodebookTables
from rqtoolkit.quantizers.levels import LevelPass, given_codes, quantize_levels
from rqtoolkit.quantizers.synchronisation import broadcast_from_first, sum_over_ranks

__all__ = ["quantize_and_update"]

_EPSILON = 1e-5  # added to counts
_DECAY = 0.99  # unless told otherwise
_DEAD = 1.0  # moving count under which an entry restarts
_NOISE = 0.01  # of vectors repeated for a pool, in units of 1 / √dim


def quantize_and_update(
    state: CodebookTables,
    x: Tensor,
    depth: int,
    weights: Tensor,
    generator: torch.Generator | None = None,
    *,
    in_use: Tensor | None = None,
) -> LevelPass:
    """Quantize greedily, and write each level's table before the next level looks at it.

    Args:
        state: Tables with moving counts and sums; changed in place.
        x: Vectors, shape (N, dim), float32.
        depth: Levels.
        weights: Shape (N,): 1 for vectors that count, 0 for those that do not.
        generator: Source of the restarts.
        in_use: As for `quantize_levels`.

    References:
        Lee et al., CVPR 2022, section 3.1 and the authors' code,
        https://github.com/kakaobrain/rq-vae-transformer
    """
    tables, codewords = [], []
    with torch.no_grad():
        residual = x.detach()
        for level in range(depth):
            table = level if len(state.tables) > 1 else 0
            size = state.codebook_sizes[table]
            own = state.tables[table, :size]
            codes = nearest_codes(residual, own)
            tables.append(own.clone())
            codewords.append(codes)
            quantized = F.embedding(codes, own)
            rows = torch.where(weights[:, None] > 0, residual, 0)
            _move(state, table, size, rows, codes, weights, generator)
            residual = residual - quantized
    chosen = torch.stack(codewords, dim=1)
    return quantize_levels(x, tables, given_codes(chosen), in_use=in_use)


def _move(
    state: CodebookTables,
    table: int,
    size: int,
    rows: Tensor,
    codes: Tensor,
    weights: Tensor,
    generator: torch.Generator | None,
) -> None:
    """Move counts and sums by one level's vectors, restart entries, and write the table."""
    counts, sums = state.counts[table, :size], state.sums[table, :size]
    batch_counts, batch_sums = torch.zeros_like(counts), torch.zeros_like(sums)
    batch_counts.index_add_(0, codes, weights)
    batch_sums.index_add_(0, codes, rows)
    sum_over_ranks(batch_counts, batch_sums)
    seen = batch_counts.sum() > 0  # a batch without vectors is no evidence
    decay = _DECAY if state.decay is None else state.decay
    kept = torch.where(seen, decay, 1.0)
    counts.mul_(kept).add_(batch_counts, alpha=1 - decay)
    sums.mul_(kept).add_(batch_sums, alpha=1 - decay)
    if state.restart_threshold > 0:
        pool = _pool(rows[weights > 0], size, generator)
        broadcast_from_first(pool)
        dead = (counts < _DEAD) & pool.isfinite().all(dim=1)
        sums.copy_(torch.where(dead[:, None], pool, sums))
        counts.masked_fill_(dead, 1.0)
    total = counts.sum()
    smoothed = total * (counts + _EPSILON) / (total + size * _EPSILON)
    moved = sums / smoothed[:, None]
    state.tables[table, :size] = torch.where(seen, moved, state.tables[table, :size])


def _pool(rows: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Return `count` of the rows in random order, repeated with noise where they are too few."""
    if not len(rows):
        return rows.new_full((count, rows.shape[1]), torch.nan)
    if len(rows) < count:
        rows = rows.repeat(-(-count // len(rows)), 1)
        noise = torch.rand(rows.shape, generator=generator, device=rows.device)
        rows = rows + noise * (_NOISE / rows.shape[1] ** 0.5)
    order = torch.randperm(len(rows), generator=generator, device=rows.device)
    return rows[order[:count]]
