"""The state behind a quantizer: tables of codewords and how often each is used."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.assign import level_tables
from rqtoolkit.functional.codebook_products import CodebookProducts, product_bytes
from rqtoolkit.functional.encoding import PRODUCTS_SHARE
from rqtoolkit.quantizers.fitting import kmeans_tables, sampled_tables
from rqtoolkit.quantizers.precision import exact_values
from rqtoolkit.quantizers.projections import LevelProjections
from rqtoolkit.quantizers.synchronisation import broadcast_from_first, gather_rows
from rqtoolkit.quantizers.updates import (
    BatchRecord,
    dead_limit,
    move_averages,
    revive,
    usable_rows,
)

__all__ = ["CodebookTables"]

_GATHER_PER_CODE = 2  # vectors per codeword before k-means starts inside a network


class CodebookTables(nn.Module):
    """Tables (T, K, codebook_dim) in float32, their counts, and vectors gathered for k-means.

    T is 1 for a codebook shared over depth. Tables smaller than the largest are padded with zero
    rows, which `levels` cuts off. Everything stays float32 whatever a parent module is cast to.

    Args:
        codebook_sizes: Entries of each table.
        dim: Size of the vectors that are quantized.
        codebook_dim: Size of a codeword.
        update: "gradient" to make the tables a parameter that an optimiser moves, "ema" for moving
            averages, "paper" to keep moving sums beside the counts.
        beam: Prefixes that encoding keeps.
        decay: Of the moving averages; by the size of the batch when None.
        restart_threshold: An entry is dead when its count falls under this share of the mean
            count of its table, or under 1 where that is less; 0 turns restarts off.
    """

    tables: Tensor
    counts: Tensor
    sums: Tensor
    initialized: Tensor
    stored_beam: Tensor
    penalties: Tensor

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        dim: int,
        *,
        codebook_dim: int,
        update: str,
        beam: int,
        decay: float | None,
        restart_threshold: float,
    ) -> None:
        super().__init__()
        self.codebook_sizes = tuple(codebook_sizes)
        self.learnable = update == "gradient"
        self.decay = decay
        self.restart_threshold = restart_threshold
        largest = max(self.codebook_sizes)
        shape = (len(self.codebook_sizes), largest, codebook_dim)
        tables = torch.randn(shape, dtype=torch.float32)
        tables /= codebook_dim**0.5
        valid = torch.arange(largest) < torch.tensor(self.codebook_sizes)[:, None]
        tables *= valid[..., None]
        if self.learnable:
            self.tables = nn.Parameter(tables)
        else:
            self.register_buffer("tables", tables)
        # A count of 1 for a codeword that stands for itself; the paper's start is empty.
        keeps_sums = update == "paper"
        self.register_buffer("counts", valid.float() * (not keeps_sums))
        self.register_buffer("sums", torch.zeros_like(tables) if keeps_sums else None)
        # Flags and settings are floats, so that averages of weights can run over all buffers.
        self.register_buffer("initialized", torch.tensor(0.0))
        # In the state only where there are some: most quantizers have none.
        self.register_buffer("penalties", torch.empty(0, 0), persistent=False)
        self.register_buffer("stored_beam", torch.tensor(float(beam)))
        # No buffer, though part of the state: what copies buffers expects one shape for ever.
        self.gathered = torch.empty(0, dim, dtype=torch.float32)
        self._kept: tuple[Any, Any, CodebookProducts] | None = None
        # These mirror buffers, so that nothing waits for a device.
        self._started, self.beam = False, beam
        self._in_shards = False

    @property
    def is_initialized(self) -> bool:
        """Whether the tables have had their start; nothing waits for a device once they have."""
        if not self._started:
            self._see_whether_kmeans_started()
        return self._started

    @torch.compiler.disable
    def _see_whether_kmeans_started(self) -> None:
        # Somebody else may have written the buffer: DistributedDataParallel, for one.
        self._started = bool(self.initialized > 0.5)

    def __setattr__(self, name: str, value: Any) -> None:
        """Notice when `fully_shard` puts shards in place of the tables."""
        super().__setattr__(name, value)
        if name == "tables" and hasattr(value, "to_local"):
            self._in_shards = True

    def _check_lasting(self) -> None:
        """Refuse to write tables that `fully_shard` gathers for one step and then forgets.

        Raises:
            ConfigError: If they are such.
        """
        if self._in_shards and self.learnable:
            raise ConfigError(
                "ResidualQuantizer.forward: update='gradient' cannot start or restart entries of "
                "tables that fully_shard keeps in shards. Take update='ema'; or start the "
                "codebooks before fully_shard, and pass restart_threshold=0."
            )

    def levels(self, depth: int) -> list[Tensor]:
        """Return the table (K_d, dim) of each of the first `depth` levels, without padding.

        In float32, also where `fully_shard` gathers parameters in another precision.
        """
        return level_tables(self.tables.float(), self.codebook_sizes, depth)

    def products(self, depth: int, *, both_ways: bool, max_bytes: int) -> CodebookProducts | None:
        """Return what encoding with the first `depth` levels needs, kept until a table changes.

        Args:
            depth: Levels.
            both_ways: As refinement needs them.
            max_bytes: Of all that encoding may take; None is returned where it does not suffice,
                and where a compiler is tracing.
        """
        if torch.compiler.is_compiling():
            return None
        levels = [table.detach() for table in self.levels(depth)]
        sizes = [len(table) for table in levels]
        if product_bytes(sizes, both_ways=both_ways) > PRODUCTS_SHARE * max_bytes:
            return None
        if self.tables.is_inference():  # such tensors do not count their changes
            return CodebookProducts.of(levels, self.level_penalties(depth), both_ways=both_ways)
        key = (depth, both_ways, self.tables.device, id(self.penalties), self.penalties._version)
        kept = self._kept
        # Compared by value: what writes `.data`, as averages of weights do, counts as no change.
        if kept is None or kept[0] != key or not kept[1][0].equal(self.tables):
            made = CodebookProducts.of(levels, self.level_penalties(depth), both_ways=both_ways)
            # The penalties stay alive, so that their id stays their own.
            kept = (key, (self.tables.detach().clone(), self.penalties), made)
            self._kept = kept
        return kept[2]

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
        penalties = torch.empty(0, 0) if penalties is None else penalties.detach().float()
        self.penalties = penalties.to(self._device_of_state())

    def set_beam(self, beam: int) -> None:
        """Keep how many prefixes encoding keeps."""
        self.stored_beam.fill_(beam)
        self.beam = beam

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
        if self.sums is not None:
            self.sums.copy_(self.tables * self.counts[..., None])
        self.gathered = self.gathered[:0].clone()
        self.initialized.fill_(1.0)
        self._started = True

    def dead_entries(self) -> Tensor | None:
        """Return how many entries of each table are dead, shape (T,), int64.

        None where entries do not restart, or not by a threshold relative to the mean.
        """
        if self.restart_threshold == 0 or self.sums is not None:
            return None
        own = [self.counts[table, :size] for table, size in enumerate(self.codebook_sizes)]
        dead = [(counts < dead_limit(counts, self.restart_threshold)).sum() for counts in own]
        return torch.stack(dead)

    @torch.compiler.disable
    @torch.no_grad()
    def start(
        self,
        x: Tensor,
        depth: int,
        generator: torch.Generator | None,
        projections: LevelProjections | None = None,
    ) -> None:
        """Keep the vectors of all ranks; start the tables by k-means once there are enough.

        Until then, vectors that were seen stand in as codewords.

        Args:
            x: Vectors of one batch, shape (N, dim); those that are not finite, or huge,
                are left out.
            depth: Levels.
            generator: Source of chance, on the device of x.
            projections: Into the spaces of the codes, where there are any.
        """
        self._check_lasting()
        vectors = gather_rows(x[usable_rows(x)])
        self.gathered = torch.cat([self.gathered, vectors])
        if not len(self.gathered):
            return
        enough = len(self.gathered) >= _GATHER_PER_CODE * max(self.codebook_sizes)
        sizes, seen = self.codebook_sizes, self.gathered
        if enough:
            seed = int(torch.randint(2**31, (1,), generator=generator, device=x.device))
            tables = kmeans_tables(seen, sizes, depth, seed=seed, projections=projections)
        else:
            tables = sampled_tables(seen, sizes, depth, generator, projections=projections)
        broadcast_from_first(tables)
        uses = depth if len(self.codebook_sizes) == 1 else 1
        self.set_tables(tables, vectors=len(vectors) * uses if enough else None)

    def new_record(
        self, levels: int, weights: Tensor, generator: torch.Generator | None
    ) -> BatchRecord:
        """Return a record to note a batch in, for `update`.

        Args:
            levels: Levels that the batch passes through.
            weights: Shape (N,): 1 for vectors that count, 0 for those that do not.
            generator: Source of chance for the restarts.
        """
        return BatchRecord(
            self.tables.detach().float(),
            levels,
            weights,
            sums=not self.learnable,
            restarts=self.restart_threshold > 0,
            generator=generator,
        )

    @torch.no_grad()
    def update(self, record: BatchRecord) -> Tensor | None:
        """Move counts and (under EMA) codewords towards one batch, then revive dead entries.

        Args:
            record: What the batch says.

        Returns:
            How many entries of each table were dead, shape (T,), int64; None without restarts.
        """
        record.share()
        move_averages(self.tables, self.counts, self.codebook_sizes, record, decay=self.decay)
        if record.pool is None:
            return None
        self._check_lasting()
        return revive(
            self.tables,
            self.counts,
            self.codebook_sizes,
            record.pool,
            threshold=self.restart_threshold,
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "CodebookTables":
        """Follow the parent to another device, never to another precision."""
        with exact_values(self):
            super()._apply(fn, recurse)
        device = self.tables.device
        lost = self.gathered.is_meta  # as what `to_empty` gives its storage has lost its values
        kept = self.gathered[:0] if lost else self.gathered
        self.gathered = torch.empty_like(kept, device=device) if lost else kept.to(device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Add what is no buffer: gathered vectors, sizes, and the penalties where there are any."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "gathered"] = self.gathered
        destination[prefix + "sizes"] = torch.tensor(self.codebook_sizes)
        if self.penalties.numel():
            destination[prefix + "penalties"] = self.penalties

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take back what `_save_to_state_dict` added, and refuse what is of other sizes."""
        gathered = state_dict.pop(prefix + "gathered", self.gathered)
        sizes = state_dict.pop(prefix + "sizes", None)
        if gathered.shape[1:] != self.gathered.shape[1:]:
            error_msgs.append(
                f"{prefix}gathered has vectors of size {tuple(gathered.shape[1:])}; "
                f"got a quantizer for {tuple(self.gathered.shape[1:])}."
            )
        elif sizes is not None and tuple(sizes.tolist()) != self.codebook_sizes:
            error_msgs.append(
                f"{prefix}tables have codebook sizes {tuple(sizes.tolist())}; got a quantizer of "
                f"{self.codebook_sizes}."
            )
        else:
            self.gathered = gathered.detach().to(self._device_of_state(), torch.float32, copy=True)
            self.set_penalties(state_dict.pop(prefix + "penalties", None))
        state_dict.pop(prefix + "penalties", None)
        # States put together from elsewhere say nothing of how to encode.
        state_dict.setdefault(prefix + "stored_beam", torch.tensor(float(self.beam)))
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if not self.initialized.is_meta:
            self._started = bool(self.initialized > 0.5)
            self.beam = round(float(self.stored_beam))

    def _device_of_state(self) -> str | torch.device:
        # Tables without storage are about to be replaced by those of a state, on the CPU.
        return "cpu" if self.tables.is_meta else self.tables.device
