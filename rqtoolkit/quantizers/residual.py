"""The residual quantizer as a torch module: trained online in a network, or offline on a matrix."""

from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.functional.assign import (
    DEFAULT_MAX_BYTES,
    level_tables,
    sum_codewords,
)
from rqtoolkit.functional.gradient import straight_through
from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.refinement import encode_refined
from rqtoolkit.io.artifact import check_tensors
from rqtoolkit.quantizers import checks, faiss_bridge, soft_encoding
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.codebook import CodebookTables
from rqtoolkit.quantizers.levels import quantize_levels
from rqtoolkit.quantizers.offline import fit_tables
from rqtoolkit.quantizers.output import CodeStats, QuantizerOutput

__all__ = ["ResidualQuantizer"]

_ARTIFACT_TENSORS = ("tables", "counts", "initialized")
_FIT_ROWS_PER_CODE = 1024


class ResidualQuantizer(Quantizer):
    """Quantize vectors as a sum of `depth` codewords, each for what the ones before leave over.

    In training mode, `forward` starts the codebooks by k-means++ on the first vectors it sees,
    moves them by exponential moving averages (or leaves them to an optimiser) and revives dead
    entries. `fit` trains on a matrix instead. `encode`, `decode` and everything in evaluation mode
    never change a table. Distances and statistics are float32, also under autocast and inside a
    half-precision parent.

    Args:
        dim: Vector size.
        depth: Number of residual levels.
        codebook_size: Entries of each level, or a sequence of one number per level.
        shared_codebook: One table for all levels (the paper's choice) in place of one per level.
        update: "ema" moves codewords by moving averages; "gradient" makes the tables a parameter:
            add `codebook_loss` to the loss.
        decay: Of the moving averages, in [0, 1).
        restart_threshold: An entry is dead when its moving count falls under this share of the
            mean count of its table (of 1, where the mean is larger); 0 turns restarts off.
        kmeans_init: Start from k-means on the first 2 · codebook_size training vectors; until then
            vectors of the data stand in. False keeps the random start.
        channels_first: Inputs are (B, dim, ...) in place of (..., dim). Codes stay depth-last.
        beam: Prefixes that `encode` keeps unless told otherwise; `fit` sets it.

    Example:
        >>> quantizer = ResidualQuantizer(dim=8, depth=3, codebook_size=16)
        >>> out = quantizer(torch.randn(4, 10, 8))
        >>> out.codes.shape, out.quantized.shape
        (torch.Size([4, 10, 3]), torch.Size([4, 10, 8]))

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022,
        section 3.1. https://arxiv.org/abs/2203.01941
        van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017 (EMA in
        appendix A.1). https://arxiv.org/abs/1711.00937
    """

    arguments = (
        "dim",
        "depth",
        "codebook_size",
        "shared_codebook",
        "update",
        "decay",
        "restart_threshold",
        "kmeans_init",
        "channels_first",
        "beam",
    )

    def __init__(
        self,
        dim: int,
        depth: int,
        codebook_size: int | Sequence[int],
        *,
        shared_codebook: bool = False,
        update: Literal["ema", "gradient"] = "ema",
        decay: float = 0.99,
        restart_threshold: float = 0.25,
        kmeans_init: bool = True,
        channels_first: bool = False,
        beam: int = 1,
    ) -> None:
        super().__init__()
        sizes = checks.level_sizes(
            "ResidualQuantizer", dim, depth, codebook_size, shared_codebook=shared_codebook
        )
        checks.check_settings(update, decay=decay, restart_threshold=restart_threshold, beam=beam)
        self.dim, self.depth = dim, depth
        self.codebook_size = list(sizes) if isinstance(codebook_size, Sequence) else sizes[0]
        self.codebook_sizes = sizes
        self.shared_codebook = shared_codebook
        self.update, self.decay, self.restart_threshold = update, decay, restart_threshold
        self.kmeans_init = kmeans_init
        self.channels_first = channels_first
        self.beam = beam
        self.state = CodebookTables(
            sizes[:1] if shared_codebook else sizes,
            dim,
            learnable=update == "gradient",
            decay=decay,
            restart_threshold=restart_threshold,
        )

    @property
    def codebooks(self) -> Tensor:
        """Tables, shape (depth, K, dim), or (1, K, dim) where shared; smaller ones zero-padded."""
        return self.state.tables.detach()

    @property
    def penalties(self) -> Tensor:
        """What choosing each entry adds to the squared error in `encode`.

        Shape (depth, K), zero-padded, of a quantizer fitted with a rate; else (0, 0). Codes of
        frequent entries cost less to store; `forward` and `soft_codes` do not mind the rate.
        """
        return self.state.penalties

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> QuantizerOutput:
        """Quantize greedily; in training mode, also let the codebooks learn from x.

        Args:
            x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first; floating point.
                Rows with NaN or infinite values teach the codebooks nothing.
            generator: Source of chance of the k-means start and the restarts, on the device of x;
                torch's default generator when None.

        Returns:
            Quantized vectors, codes, losses and statistics.

        Raises:
            ShapeError: If x does not have dim channels.
        """
        flat, shape = self._flatten(x, "forward")
        learning = self.training and not self.frozen
        with torch.autocast(x.device.type, enabled=False):
            if learning and self.kmeans_init and not self.state.is_initialized:
                self.state.start(flat.detach(), self.depth, generator)
            tables = self.state.levels(self.depth)
            done = quantize_levels(flat, tables, codebook_loss=self.update == "gradient")
            if learning and (self.state.is_initialized or not self.kmeans_init):
                weights = flat.isfinite().all(dim=1).float()
                clean = [torch.where(weights[:, None] > 0, r, 0) for r in done.residuals]
                self.state.update(clean, done.codes, weights, generator)
            quantized = done.quantized
            quantized = straight_through(flat, quantized) if flat.requires_grad else quantized
        return QuantizerOutput(
            quantized=self._restore(quantized, shape).to(x.dtype),
            codes=done.codes.reshape(*shape, self.depth),
            commitment_loss=done.commitment_loss,
            codebook_loss=done.codebook_loss,
            stats=CodeStats(done.codes, self.codebook_sizes),
        )

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        *,
        beam: int | None = None,
        depth: int | None = None,
        icm_rounds: int = 0,
        perturbations: int = 0,
        seed: int = 0,
        threads: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> Tensor:
        """Encode vectors as stacks of codes of least squared error plus `penalties`.

        Args:
            x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first; finite.
            beam: Prefixes kept per vector; the beam the quantizer was fitted for when None, and 1
                is the greedy rule of the paper.
            depth: Levels to encode, at most the quantizer's, which is the default.
            icm_rounds: Sweeps over the levels after the beam, each choosing one code anew given
                the others.
            perturbations: Rounds of changing codes by chance and sweeping again, kept where better.
            seed: Of that chance.
            threads: Threads of the compiled loops; as many as torch uses when None.
            max_bytes: Bound on the memory at work.

        Returns:
            Codes, shape (..., depth), int64, in [0, codebook_size of the level).

        Raises:
            ShapeError: If x does not have dim channels.
            DataError: If x has NaN or infinite values.
            ConfigError: If beam or depth is out of range.
        """
        flat, shape, beam, depth = self._to_encode(x, beam, depth)
        refining = icm_rounds > 0 or perturbations > 0
        with torch.autocast(x.device.type, enabled=False):
            codes = encode_refined(
                flat,
                self._levels(depth),
                beam=beam,
                rounds=icm_rounds,
                perturbations=perturbations,
                penalties=self.state.level_penalties(depth),
                seed=seed,
                products=self.state.products(depth, both_ways=refining, max_bytes=max_bytes),
                max_bytes=max_bytes,
                threads=threads,
            )
        return codes.reshape(*shape, depth)

    def partial_sums(self, codes: Tensor) -> Tensor:
        """Sums of the first 1, 2, … d codewords; arguments and errors as in `decode`.

        Returns:
            Vectors, channels last: shape (..., d, dim), float32.
        """
        flat = checks.check_codes(codes, self.codebook_sizes, self._name("partial_sums"))
        tables = self._levels(flat.shape[1])
        codewords = [table[flat[:, level]] for level, table in enumerate(tables)]
        return torch.stack(codewords, dim=1).cumsum(dim=1).reshape(*codes.shape, self.dim)

    soft_codes = soft_encoding.soft_codes
    soft_targets = soft_encoding.soft_targets

    @torch.no_grad()
    def fit(
        self,
        X: NDArray | Tensor,
        *,
        iterations: int = 40,
        starts: int = 1,
        rounds: int = 4,
        beam: int = 5,
        prefix_weight: float = 0.0,
        warm_start: bool = False,
        rate_weight: float | None = None,
        target_bits: float | None = None,
        time_budget: float | None = None,
        max_rows: int | None = None,
        threads: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> "ResidualQuantizer":
        """Train offline on a matrix: level by level, then all levels by joint least squares.

        Args:
            X: Vectors, shape (N, dim), numpy (also memory-mapped) or torch, finite, N at least the
                largest codebook size.
            iterations: Lloyd iterations a level.
            starts: Short k-means++ starts a level, of which the best goes on.
            rounds: Rounds of encoding and joint least squares over all levels, at most.
            beam: Prefixes kept per vector while training, and from then on in `encode`.
            prefix_weight: Weight of the error after each shorter code beside that of the whole, so
                that codes cut short stay good; 0 minds the whole alone.
            warm_start: Go on from the quantizer's own tables in place of starting afresh.
            rate_weight: Squared error that one bit of entropy-coded code may cost: keeps
                `penalties`, which make `encode` prefer frequent codes.
            target_bits: Bits per vector to reach, entropy-coded, in place of `rate_weight`.
            time_budget: Seconds after which no further round begins.
            max_rows: Rows used, drawn at random; 1024 per codeword when None.
            threads: Threads to use; as many as torch does when None.
            seed: Fixes the result.
            progress: Told of each level and round.

        Returns:
            The quantizer itself, fitted.

        Raises:
            ShapeError: If X is not (N, dim).
            DataError: If X is not numeric or finite, or has too few rows.
            ConfigError: If a number is out of range.
            MissingDependencyError: If faiss is not installed.
        """
        checks.check_fit(
            self.frozen,
            iterations=iterations,
            starts=starts,
            beam=beam,
            rounds=rounds,
            prefix_weight=prefix_weight,
            rate_weight=rate_weight,
            target_bits=target_bits,
            most_bits=sum(log2(size) for size in self.codebook_sizes),
            time_budget=time_budget,
        )
        if max_rows is None:
            max_rows = _FIT_ROWS_PER_CODE * max(self.codebook_sizes)
        sizes = self.state.codebook_sizes
        x = checks.training_rows(
            self._name("fit"), X, self.dim, min_rows=max(sizes), max_rows=max_rows, seed=seed
        ).to(self.state.tables.device)
        tables, penalties = fit_tables(
            x,
            sizes,
            self.depth,
            iterations=iterations,
            starts=starts,
            rounds=rounds,
            beam=beam,
            prefix_weight=prefix_weight,
            start=self.codebooks if warm_start else None,
            rate_weight=rate_weight,
            target_bits=target_bits,
            time_budget=time_budget,
            threads=threads,
            seed=seed,
            progress=progress,
        )
        self.beam = beam
        self.state.set_tables(tables, vectors=len(x) * (self.depth if self.shared_codebook else 1))
        self.state.set_penalties(penalties)
        return self

    to_faiss = faiss_bridge.to_faiss
    from_faiss = classmethod(faiss_bridge.from_faiss)

    def _sum(self, codes: Tensor) -> Tensor:
        return sum_codewords(codes, self._levels(codes.shape[1]))

    def _stored(self) -> dict[str, Tensor]:
        stored = {name: getattr(self.state, name) for name in _ARTIFACT_TENSORS}
        return stored | ({"penalties": self.penalties} if self.penalties.numel() else {})

    def _adopt(self, path: str | Path, tensors: Mapping[str, Tensor]) -> None:
        expected = self._stored()
        if "penalties" in tensors:
            expected["penalties"] = self.penalties.new_empty(self.depth, max(self.codebook_sizes))
        check_tensors(path, expected, tensors)
        self.state.load_state_dict({**self.state.state_dict(), **tensors})

    def _codewords(self) -> list[Tensor]:
        return self._levels(self.depth)

    def _levels(self, depth: int) -> list[Tensor]:
        """Return the tables of the first levels, without gradients."""
        return level_tables(self.codebooks, self.state.codebook_sizes, depth)
