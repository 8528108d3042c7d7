"""How tables follow what they are chosen for: moving averages, and new lives for dead entries.

A moving average of the vectors of an entry is always its count times its codeword, so only counts
are kept, and a revived entry has no stale sum that could drag it back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rqtoolkit.functional.arguments import LARGEST_VALUE
from rqtoolkit.quantizers.synchronisation import Draws, draw_rows, sum_over_ranks

__all__ = ["BatchRecord", "dead_limit", "move_averages", "paces", "revive", "usable_rows"]

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


class BatchRecord:
    """What a batch says of tables, noted while it passes through the levels.

    Args:
        tables: Shape (T, K, dim); one table takes what all levels say.
        levels: Levels of the pass.
        weights: Shape (N,): 1 for vectors that count, 0 for those that do not.
        sums: Whether to add up vectors: not where an optimiser moves the tables.
        restarts: Whether to draw vectors that entries may restart on.
        generator: Source of those draws.

    Attributes:
        counts: How often each entry was chosen, shape (T, K).
        sums: Sum of what it was chosen for, shape (T, K, dim), or None.
        pool: A vector for each entry, drawn from what its table quantized, shape (T, K, dim), NaN
            where there was none; or None.
    """

    def __init__(
        self,
        tables: Tensor,
        levels: int,
        weights: Tensor,
        *,
        sums: bool,
        restarts: bool,
        generator: torch.Generator | None,
    ) -> None:
        self.levels, self.weights = levels, weights
        self.counts = tables.new_zeros(tables.shape[:2])
        self.sums = torch.zeros_like(tables) if sums else None
        self.pool = torch.zeros_like(tables) if restarts else None
        self._draws: Draws | None = None
        if restarts:
            own = len(tables), self.uses, tables.shape[1]
            self._draws = draw_rows(weights, *own, generator)

    @property
    def uses(self) -> int:
        """Levels that a table serves."""
        return self.levels if len(self.counts) == 1 else 1

    def add(self, level: int, inputs: Tensor, codes: Tensor) -> None:
        """Note one level: what it quantized, (N, dim), finite where weights are 1, and codes (N,).

        Vectors are not kept: those of all levels would take as much memory as all else.
        """
        table = min(level, len(self.counts) - 1)
        self.counts[table].index_add_(0, codes, self.weights)
        if self.sums is not None:
            counted = torch.where(self.weights[:, None] > 0, inputs, 0)
            self.sums[table].index_add_(0, codes, counted)
        if self._draws is not None and self.pool is not None:
            self._draws.collect(self.pool[table], table, level - table, inputs)

    def share(self) -> None:
        """Add up what all processes have noted."""
        noted = (self.counts, self.sums, self.pool)
        sum_over_ranks(*(tensor for tensor in noted if tensor is not None))
        if self._draws is not None and self.pool is not None:
            self.pool.masked_fill_(self._draws.total == 0, torch.nan)


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
    tables: Tensor,
    counts: Tensor,
    codebook_sizes: Sequence[int],
    record: BatchRecord,
    *,
    decay: float | None,
) -> None:
    """Move counts, and codewords in proportion, towards one batch, in place.

    With n and m the counts before the step and of the batch, N = decay n + (1 − decay) m, a
    codeword becomes (decay n e + (1 − decay) Σ x) / N.

    Args:
        tables: Shape (T, K, dim); untouched where the record has no sums.
        counts: Shape (T, K).
        codebook_sizes: Entries of each table.
        record: What the batch says; its sums are used up.
        decay: Of the averages; None takes `paces` for 1 − decay.

    References:
        van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, appendix A.1.
        https://arxiv.org/abs/1711.00937
    """
    chosen, sums = record.counts, record.sums
    pace = paces(chosen, codebook_sizes, record.uses) if decay is None else 1 - decay
    pace = pace * (chosen.sum() > 0)  # a batch without vectors is no evidence
    counts.lerp_(chosen, pace)
    if sums is None:
        return
    # Entries that nothing chose keep their place exactly; so do padding rows.
    share = pace * (chosen > 0) / counts.clamp_min(torch.finfo(torch.float32).tiny)
    tables.add_(sums.addcmul_(chosen[..., None], tables, value=-1).mul_(share[..., None]))
    record.sums = None


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
    pool: Tensor,
    *,
    threshold: float,
) -> Tensor:
    """Put dead entries on vectors of this batch, with the count of a living entry, in place.

    Args:
        tables: Shape (T, K, dim).
        counts: Moving counts, shape (T, K).
        codebook_sizes: Entries of each table.
        pool: A vector for each entry (`BatchRecord.pool`).
        threshold: As for `dead_limit`.

    Returns:
        How many entries of each table were dead, shape (T,), int64.
    """
    found = []
    for table, size in enumerate(codebook_sizes):
        own, vectors = counts[table, :size], pool[table, :size]
        limit = dead_limit(own, threshold)
        dead = own < limit
        found.append(dead.sum())
        dead = dead & vectors.isfinite().all(dim=1)
        tables[table, :size] = torch.where(dead[:, None], vectors, tables[table, :size].detach())
        counts[table, :size] = torch.where(dead, _REVIVED_COUNT * limit, own)
    return torch.stack(found)
