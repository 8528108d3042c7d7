"""How tables follow what they are chosen for: moving averages, and new lives for dead entries.

A moving average of the vectors of an entry is always its count times its codeword, so only counts
are kept, and a revived entry has no stale sum that could drag it back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rqtoolkit.functional.arguments import LARGEST_VALUE
from rqtoolkit.quantizers.synchronisation import draw_rows, sum_over_ranks

__all__ = ["batch_statistics", "dead_limit", "move_averages", "paces", "revive", "usable_rows"]

# Without a given decay, averages reach back over this many vectors for each entry of a table, but
# over no fewer batches than 20 and no more than 100.
_MEMORY = 20
_PACES = (0.01, 0.05)
# Revived entries start at this many times the threshold: time to prove themselves before the next
# look, without outweighing what they collect.
_REVIVED_COUNT = 3.0


def usable_rows(x: Tensor) -> Tensor:
    """Return which vectors (N, dim) codebooks can learn from: finite and not huge, bool (N,)."""
    return (x.abs() <= LARGEST_VALUE).all(dim=1)  # nor is NaN


def batch_statistics(
    inputs: Sequence[Tensor], codes: Tensor, weights: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Count what each entry was chosen for, and add it up, over all processes.

    Args:
        inputs: What each level quantized, shape (N, dim) each, finite where weights are 1.
        codes: Shape (N, depth).
        weights: Shape (N,): 1 for vectors that count, 0 for those that do not.
        like: Tables, shape (T, K, dim); one table takes the statistics of all levels.

    Returns:
        Counts (T, K) and sums (T, K, dim).
    """
    counts, sums = like.new_zeros(like.shape[:2]), torch.zeros_like(like)
    for level, rows in enumerate(inputs):
        table = min(level, len(like) - 1)
        counts[table].index_add_(0, codes[:, level], weights)
        sums[table].index_add_(0, codes[:, level], torch.where(weights[:, None] > 0, rows, 0))
    sum_over_ranks(counts, sums)
    return counts, sums


def paces(chosen: Tensor, codebook_sizes: Sequence[int], uses: int) -> Tensor:
    """Return the weight of one batch in the moving averages, by how much it tells of an entry.

    Large batches need no long memory to average chance away, and a short one follows an encoder
    that learns; for small batches, the memory has to be as long as it can be.

    Args:
        chosen: How often the batch chose each entry, shape (T, K).
        codebook_sizes: Entries of each table.
        uses: Levels that a table serves.

    Returns:
        1 − decay for each table, shape (T, 1).
    """
    # Sizes stay numbers: the host would wait for a copy of them to a device.
    per_entry = [own.sum() / size for own, size in zip(chosen, codebook_sizes, strict=True)]
    return (torch.stack(per_entry) / (_MEMORY * uses)).clamp(*_PACES)[:, None]


def move_averages(
    tables: Tensor | None,
    counts: Tensor,
    codebook_sizes: Sequence[int],
    batch: tuple[Tensor, Tensor],
    *,
    decay: float | None,
    uses: int = 1,
) -> None:
    """Move counts, and codewords in proportion, towards one batch, in place.

    With n and m the counts before the step and of the batch, N = decay n + (1 − decay) m, a
    codeword becomes (decay n e + (1 − decay) Σ x) / N.

    Args:
        tables: Shape (T, K, dim); None where an optimiser moves them.
        counts: Shape (T, K).
        codebook_sizes: Entries of each table.
        batch: Counts and sums of the batch (`batch_statistics`).
        decay: Of the averages; None takes `paces` for 1 − decay.
        uses: Levels that a table serves.

    References:
        van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, appendix A.1.
        https://arxiv.org/abs/1711.00937
    """
    chosen, sums = batch
    pace = paces(chosen, codebook_sizes, uses) if decay is None else 1 - decay
    pace = pace * (chosen.sum() > 0)  # a batch without vectors is no evidence
    counts.lerp_(chosen, pace)
    if tables is None:
        return
    # Entries that nothing chose keep their place exactly; so do padding rows.
    share = pace * (chosen > 0) / counts.clamp_min(torch.finfo(torch.float32).tiny)
    tables.add_(sums.addcmul_(chosen[..., None], tables, value=-1).mul_(share[..., None]))


def dead_limit(counts: Tensor, threshold: float) -> Tensor:
    """Return the count under which an entry of a table is dead, a scalar.

    Args:
        counts: Moving counts of one table, shape (K,).
        threshold: Share of the mean count that is enough, or a count of 1 where that is less.
    """
    return threshold * counts.mean().clamp(max=1 / threshold)


def revive(
    tables: Tensor,
    counts: Tensor,
    codebook_sizes: Sequence[int],
    inputs: Sequence[Tensor],
    weights: Tensor,
    *,
    threshold: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Put dead entries on vectors of this batch, with the count of a living entry, in place.

    Args:
        tables: Shape (T, K, dim).
        counts: Moving counts, shape (T, K).
        codebook_sizes: Entries of each table.
        inputs: What each level quantized, shape (N, dim) each.
        weights: Shape (N,): 1 for vectors that may serve, 0 for others.
        threshold: As for `dead_limit`.
        generator: Source of chance.

    Returns:
        How many entries of each table were dead, shape (T,), int64.
    """
    pools = [[rows] for rows in inputs] if len(tables) > 1 else [list(inputs)]
    drawn = draw_rows(pools, weights, tables.shape[1], generator)
    found = []
    for table, size in enumerate(codebook_sizes):
        own, pool = counts[table, :size], drawn[table, :size]
        limit = dead_limit(own, threshold)
        dead = own < limit
        found.append(dead.sum())
        dead = dead & pool.isfinite().all(dim=1)
        tables[table, :size] = torch.where(dead[:, None], pool, tables[table, :size].detach())
        counts[table, :size] = torch.where(dead, _REVIVED_COUNT * limit, own)
    return torch.stack(found)
