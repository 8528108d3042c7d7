"""The state behind a quantizer: tables of codewords and how often each is used.

Codebooks learn by exponential moving averages. The running sum of the vectors of an entry is
always its count times its codeword, so only the count is kept, and a revived entry has no stale sum
that could drag it back.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rqtoolkit.functional.assign import level_tables
from rqtoolkit.functional.codebook_products import CodebookProducts, product_bytes
from rqtoolkit.functional.encoding import PRODUCTS_SHARE
from rqtoolkit.quantizers.fitting import kmeans_tables, sampled_tables
from rqtoolkit.quantizers.precision import exact_values

__all__ = ["CodebookTables"]

# Revived entries start at this many times the threshold: time to prove themselves before the next
# look, without outweighing what they collect.
_REVIVED_COUNT = 3.0
_GATHER_PER_CODE = 2  # vectors per codeword before k-means starts inside a network


class CodebookTables(nn.Module):
    """Tables (T, K, dim) in float32, their moving counts, and vectors gathered for k-means.

    T is 1 for a codebook shared over depth. Tables smaller than the largest are padded with zero
    rows, which `levels` cuts off. Everything stays float32 whatever a parent module is cast to.

    Args:
        codebook_sizes: Entries of each table.
        dim: Vector size.
        learnable: True to make the tables a parameter that an optimiser moves; False for EMA.
        decay: Of the moving averages.
        restart_threshold: An entry is dead when its count falls under this share of the mean
            count of its table (or of 1, where the mean is larger); 0 turns restarts off.
    """

    tables: Tensor
    counts: Tensor
    gathered: Tensor
    initialized: Tensor
    penalties: Tensor

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        dim: int,
        *,
        learnable: bool,
        decay: float,
        restart_threshold: float,
    ) -> None:
        super().__init__()
        self.codebook_sizes = tuple(codebook_sizes)
        self.learnable = learnable
        self.decay = decay
        self.restart_threshold = restart_threshold
        largest = max(self.codebook_sizes)
        tables = torch.randn(len(self.codebook_sizes), largest, dim, dtype=torch.float32)
        tables /= dim**0.5
        valid = torch.arange(largest) < torch.tensor(self.codebook_sizes)[:, None]
        tables *= valid[..., None]
        if learnable:
            self.tables = nn.Parameter(tables)
        else:
            self.register_buffer("tables", tables)
        self.register_buffer("counts", valid.float())
        self.register_buffer("gathered", torch.empty(0, dim, dtype=torch.float32))
        self.register_buffer("initialized", torch.tensor(False))
        # In the state only where there are some: most quantizers have none.
        self.register_buffer("penalties", torch.empty(0, 0), persistent=False)
        self._kept: tuple[Any, Any, CodebookProducts] | None = None
        self.is_initialized = False  # mirrors the buffer, so that no forward waits for a device

    def levels(self, depth: int) -> list[Tensor]:
        """Return the table (K_d, dim) of each of the first `depth` levels, without padding."""
        return level_tables(self.tables, self.codebook_sizes, depth)

    def products(self, depth: int, *, both_ways: bool, max_bytes: int) -> CodebookProducts | None:
        """Return what encoding with the first `depth` levels needs, kept until a table changes.

        Args:
            depth: Levels.
            both_ways: As refinement needs them.
            max_bytes: Of all that encoding may take; None is returned where it does not suffice.
        """
        levels = [table.detach() for table in self.levels(depth)]
        sizes = [len(table) for table in levels]
        if product_bytes(sizes, both_ways=both_ways) > PRODUCTS_SHARE * max_bytes:
            return None
        if self.tables.is_inference():  # such tensors do not count their changes
            return CodebookProducts.of(levels, self.level_penalties(depth), both_ways=both_ways)
        source = (self.tables, self.penalties)
        key = (depth, both_ways, *((id(t), t.data_ptr(), t._version) for t in source))
        if self._kept is None or self._kept[0] != key:
            made = CodebookProducts.of(levels, self.level_penalties(depth), both_ways=both_ways)
            self._kept = (key, source, made)  # the source stays alive, so that its id stays its own
        return self._kept[2]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies and pickles what can be computed again."""
        return {**super().__getstate__(), "_kept": None}

    def level_penalties(self, depth: int) -> list[Tensor] | None:
        """Return the penalties (K_d,) of each of the first `depth` levels, or None without any."""
        if not self.penalties.numel():
            return None
        tables = len(self.codebook_sizes)
        sizes = [self.codebook_sizes[min(level, tables - 1)] for level in range(depth)]
        return [self.penalties[level, :size] for level, size in enumerate(sizes)]

    def set_penalties(self, penalties: Tensor | None) -> None:
        """Keep what each entry adds to the squared error: shape (depth, K), or None."""
        # Tables without storage are about to be replaced by those of a state, on the CPU.
        device = "cpu" if self.tables.is_meta else self.tables.device
        self.penalties = torch.empty(0, 0) if penalties is None else penalties.detach().float()
        self.penalties = self.penalties.to(device)

    @torch.no_grad()
    def set_tables(self, tables: Tensor, vectors: int | None = None) -> None:
        """Write the tables; with `vectors`, mark them initialised.

        Args:
            tables: Shape (T, K, dim).
            vectors: Assignments per table in one update. Counts start at the share that each
                entry can expect of them: from a lower start the first update would look as if
                most entries had died.
        """
        self.tables.copy_(tables)
        if vectors is None:
            return
        for table, size in enumerate(self.codebook_sizes):
            self.counts[table, :size] = vectors / size
        self.gathered = self.gathered[:0].clone()
        self.initialized.fill_(True)
        self.is_initialized = True

    @torch.no_grad()
    def start(self, x: Tensor, depth: int, generator: torch.Generator | None) -> None:
        """Keep the vectors of all ranks; start the tables by k-means once there are enough.

        Until then, vectors that were seen stand in as codewords.

        Args:
            x: Vectors of one batch, shape (N, dim); those that are not finite are left out.
            depth: Levels.
            generator: Source of chance, on the device of x.
        """
        vectors = _gather_rows(x[x.isfinite().all(dim=1)])
        self.gathered = torch.cat([self.gathered, vectors])
        if not len(self.gathered):
            return
        enough = len(self.gathered) >= _GATHER_PER_CODE * max(self.codebook_sizes)
        if enough:
            seed = int(torch.randint(2**31, (1,), generator=generator, device=x.device))
            tables = kmeans_tables(self.gathered, self.codebook_sizes, depth, seed=seed)
        else:
            tables = sampled_tables(self.gathered, self.codebook_sizes, depth, generator)
        _broadcast_from_first(tables)
        uses = depth if len(self.codebook_sizes) == 1 else 1
        self.set_tables(tables, vectors=len(vectors) * uses if enough else None)

    @torch.no_grad()
    def update(
        self,
        residuals: Sequence[Tensor],
        codes: Tensor,
        weights: Tensor,
        generator: torch.Generator | None,
    ) -> None:
        """Move counts and (under EMA) codewords towards one batch, then revive dead entries.

        Args:
            residuals: What each level quantized, shape (N, dim) each, finite.
            codes: Shape (N, depth).
            weights: Shape (N,): 1 for vectors that count, 0 for those that do not.
            generator: Source of chance for the restarts.
        """
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.tables)
        for level, residual in enumerate(residuals):
            table = min(level, len(self.codebook_sizes) - 1)
            counts[table].index_add_(0, codes[:, level], weights)
            sums[table].index_add_(0, codes[:, level], residual * weights[:, None])
        for statistic in (counts, sums):
            _sum_over_ranks(statistic)
        pace = (1 - self.decay) * (counts.sum() > 0)  # a batch without vectors is no evidence
        self.counts.lerp_(counts, pace)
        if not self.learnable:
            # Entries that nothing chose keep their place exactly; so do padding rows.
            share = pace / self.counts.clamp_min(torch.finfo(torch.float32).tiny)
            moved = share[..., None] * (sums - counts[..., None] * self.tables)
            self.tables.add_(moved * (counts > 0)[..., None])
        if self.restart_threshold > 0:
            self._revive(residuals, weights, generator)

    def _revive(
        self, residuals: Sequence[Tensor], weights: Tensor, generator: torch.Generator | None
    ) -> None:
        """Put dead entries on residuals of this batch, with the count of a living entry."""
        tables = len(self.codebook_sizes)
        for table, size in enumerate(self.codebook_sizes):
            own = [residuals[table]] if tables > 1 else list(residuals)
            pool = _draw_rows(own, weights, size, generator)
            _broadcast_from_first(pool)
            counts = self.counts[table, :size]
            threshold = self.restart_threshold * counts.mean().clamp(max=1 / self.restart_threshold)
            dead = (counts < threshold) & pool.isfinite().all(dim=1)
            self.tables[table, :size] = torch.where(
                dead[:, None], pool, self.tables[table, :size].detach()
            )
            self.counts[table, :size] = torch.where(dead, _REVIVED_COUNT * threshold, counts)

    def _apply(self, fn: Any, recurse: bool = True) -> "CodebookTables":
        """Follow the parent to another device, never to another precision."""
        with exact_values(self):
            super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Add the penalties where there are any."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.penalties.numel():
            destination[prefix + "penalties"] = self.penalties

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take the gathered vectors and the penalties, however many the state has."""
        stored = state_dict.get(prefix + "gathered")
        if stored is not None:
            self.gathered = self.gathered.new_empty(stored.shape)
        self.set_penalties(state_dict.pop(prefix + "penalties", None))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_initialized = bool(self.initialized)


def _draw_rows(
    residuals: Sequence[Tensor], weights: Tensor, count: int, generator: torch.Generator | None
) -> Tensor:
    """Draw `count` rows of weight 1, with replacement; NaN where there is none.

    Args:
        residuals: Matrices (N, dim) to draw from, one after the other.
        weights: Shape (N,): 1 for rows that may be drawn, 0 for others.
        count: Rows to draw.
        generator: Source of chance.
    """
    rows = torch.stack(list(residuals)).flatten(0, 1)
    if not len(rows):
        return rows.new_full((count, rows.shape[1]), torch.nan)
    cumulative = weights.double().repeat(len(residuals)).cumsum(dim=0)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64, device=rows.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
    drawn.clamp_(max=len(rows) - 1)
    return torch.where(cumulative[-1] > 0, rows[drawn], torch.nan)


def _synchronised() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _sum_over_ranks(tensor: Tensor) -> None:
    if _synchronised():
        dist.all_reduce(tensor)


def _broadcast_from_first(tensor: Tensor) -> None:
    """Overwrite a tensor with that of rank 0, where several processes train together."""
    if _synchronised():
        dist.broadcast(tensor, src=0)


def _gather_rows(x: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in the order of the ranks; their numbers may differ."""
    if not _synchronised():
        return x
    own = torch.tensor([x.shape[0]], device=x.device)
    sizes = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    lengths = [int(size) for size in sizes]
    padded = x.new_zeros(max(lengths), x.shape[1])
    padded[: x.shape[0]] = x
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
