"""The residual quantizer as a torch module: trained online in a network, or offline on a matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count, check_rate
from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, sum_codewords
from rqtoolkit.functional.refinement import encode_refined
from rqtoolkit.io.artifact import check_tensors
from rqtoolkit.quantizers import checks, faiss_bridge, matrix_fitting, soft_encoding
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.codebook import CodebookTables
from rqtoolkit.quantizers.depth_dropout import depths_to_use
from rqtoolkit.quantizers.online import greedy_codes, is_plain, quantize
from rqtoolkit.quantizers.output import CodeStats, QuantizerOutput
from rqtoolkit.quantizers.projections import LevelProjections

__all__ = ["ResidualQuantizer"]

_ARTIFACT_TENSORS = ("tables", "counts", "initialized")


class ResidualQuantizer(Quantizer):
    """Quantize vectors as a sum of `depth` codewords, each for what the ones before leave over.

    In training mode, `forward` starts the codebooks by k-means++ on the first vectors it sees,
    moves them by exponential moving averages (or leaves them to an optimiser) and revives dead
    entries. `fit` trains on a matrix instead. `encode`, `decode` and everything in evaluation mode
    never change a table. Distances and statistics are float32, also under autocast and inside a
    half-precision parent. Where torch.distributed is initialised, all processes move the same
    tables by the statistics of all their vectors.

    Args:
        dim: Vector size.
        depth: Number of residual levels.
        codebook_size: Entries of each level, or a sequence of one number per level.
        shared_codebook: One table for all levels (the paper's choice) in place of one per level.
        update: "ema" moves codewords by moving averages, once a step; "gradient" makes the tables
            a parameter: add `codebook_loss` to the loss; "paper" does as the paper's code, for
            comparison with it.
        decay: Of the moving averages, in [0, 1). None goes by the batch: averages reach back over
            20 vectors for each entry, but not beyond 0.95 for large batches and 0.99 for small
            ones; with "paper" it is 0.99.
        restart_threshold: An entry is dead, and put on a vector, when its moving count falls under
            this share of the mean count of its table, or under 1 where that is less; in [0, 1), 0
            turns restarts off. "paper" has its own threshold, and uses this as a switch alone.
        kmeans_init: Start from k-means on the first 2 · codebook_size training vectors; until then
            vectors of the data stand in. False keeps the random start, or what `set_codebooks`
            gave.
        estimator: How `quantized` carries gradients to x: "straight_through", or "rotation" for
            the rotation trick.
        similarity: "euclidean" chooses the nearest codeword, "cosine" that of the nearest
            direction; what is added up is the codeword as it is.
        codebook_dim: Look for codewords in so many dimensions: a projection of each level's own
            leads there and another back (factorised codes). None looks among the vectors
            themselves. `fit`, `soft_codes` and `soft_targets`, which go by distances of vectors
            from codewords, refuse this and "cosine".
        depth_dropout: Chance, in training mode, that a sample (an index of the first axis) uses
            only the first 1, 2, … or depth levels, all equally likely, so that every prefix of a
            stack serves.
        tau: Temperature, in training mode, of drawing codes from softmax(−‖r − e‖² / tau), in units
            of the mean squared codeword norm of the table; 0 takes the nearest.
        forward_beam: Prefixes that `forward` keeps per vector, in training too, for the least
            squared error in the end; 1 is greedy. More go neither with tau nor with "cosine".
        channels_first: Inputs are (B, dim, ...) in place of (..., dim). Codes stay depth-last.
        beam: Prefixes that `encode` keeps unless told otherwise; `fit` sets it.

    Raises:
        ConfigError: If an argument is out of its range, or two do not go together.

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
        Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", 2021, section III-C
        (depth dropout). https://arxiv.org/abs/2107.03312
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
        "estimator",
        "similarity",
        "codebook_dim",
        "depth_dropout",
        "tau",
        "forward_beam",
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
        update: Literal["ema", "gradient", "paper"] = "ema",
        decay: float | None = None,
        restart_threshold: float = 0.25,
        kmeans_init: bool = True,
        estimator: Literal["straight_through", "rotation"] = "straight_through",
        similarity: Literal["euclidean", "cosine"] = "euclidean",
        codebook_dim: int | None = None,
        depth_dropout: float = 0.0,
        tau: float = 0.0,
        forward_beam: int = 1,
        channels_first: bool = False,
        beam: int = 1,
    ) -> None:
        super().__init__()
        sizes = checks.level_sizes(
            "ResidualQuantizer", dim, depth, codebook_size, shared_codebook=shared_codebook
        )
        checks.check_settings(
            update=update,
            decay=decay,
            restart_threshold=restart_threshold,
            estimator=estimator,
            similarity=similarity,
            codebook_dim=codebook_dim,
            depth_dropout=depth_dropout,
            tau=tau,
            forward_beam=forward_beam,
            beam=beam,
        )
        self.dim, self.depth = dim, depth
        self.codebook_size = list(sizes) if isinstance(codebook_size, Sequence) else sizes[0]
        self.codebook_sizes = sizes
        self.shared_codebook = shared_codebook
        self.update = update
        self.kmeans_init = kmeans_init
        self.estimator, self.similarity, self.codebook_dim = estimator, similarity, codebook_dim
        self.depth_dropout, self.tau, self.forward_beam = depth_dropout, tau, forward_beam
        self.channels_first = channels_first
        self.projections = (
            None if codebook_dim is None else LevelProjections(depth, dim, codebook_dim)
        )
        self.state = CodebookTables(
            sizes[:1] if shared_codebook else sizes,
            dim,
            codebook_dim=dim if codebook_dim is None else codebook_dim,
            update=update,
            beam=beam,
            decay=decay,
            restart_threshold=restart_threshold,
        )

    @property
    def beam(self) -> int:
        """Prefixes that `encode` keeps unless told otherwise."""
        return self.state.beam

    @beam.setter
    def beam(self, beam: int) -> None:
        self.state.set_beam(check_count(self._name("beam"), "beam", beam))

    @property
    def decay(self) -> float | None:
        """Of the moving averages; None goes by the batch."""
        return self.state.decay

    @decay.setter
    def decay(self, decay: float | None) -> None:
        if decay is not None:
            check_rate("ResidualQuantizer", "decay", decay)
        self.state.decay = decay

    @property
    def restart_threshold(self) -> float:
        """Share of the mean count under which an entry restarts; 0 is off."""
        return self.state.restart_threshold

    @restart_threshold.setter
    def restart_threshold(self, threshold: float) -> None:
        check_rate("ResidualQuantizer", "restart_threshold", threshold)
        self.state.restart_threshold = threshold

    @property
    def codebooks(self) -> Tensor:
        """Codewords as they are added up: shape (depth, K, dim), zero-padded where sizes differ.

        (1, K, dim) where one table serves all levels; with codebook_dim, what each level projects
        its table to.
        """
        if self.projections is None:
            return self.state.tables.detach()
        levels = self._levels(self.depth)
        padded = [
            F.pad(level, (0, 0, 0, max(self.codebook_sizes) - len(level))) for level in levels
        ]
        return torch.stack(padded)

    @property
    def penalties(self) -> Tensor:
        """What choosing each entry adds to the squared error in `encode`.

        Shape (depth, K), zero-padded, of a quantizer fitted with a rate; else (0, 0). Codes of
        frequent entries cost less to store; `forward` and `soft_codes` do not mind the rate.
        """
        return self.state.penalties

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        depth: int | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> QuantizerOutput:
        """Quantize; in training mode, also let the codebooks learn from x.

        Args:
            x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first; floating point.
                Rows with NaN, infinite or huge values (beyond 1e15) teach the codebooks nothing,
                and do reach the losses.
            mask: True for vectors, False for padding, bool, shape of the codes without their last
                axis. Padding is quantized to 0 with codes of -1, and changes nothing for the rest.
            depth: Levels to use: a number, or integers in the shape of mask or of its first axes,
                clamped to the levels there are; all, or what `depth_dropout` draws, when None.
                Moving averages learn from a vector at every level, used or not.
            generator: Source of chance, on the device of x: of the k-means start, the restarts and
                what is drawn while training; torch's default generator when None.

        Returns:
            Quantized vectors, codes, losses and statistics.

        Raises:
            ShapeError: If x does not have dim channels, or mask or depth do not fit it.
            ConfigError: If depth is out of range.
        """
        flat, shape = self._flatten(x, "forward")
        real = checks.real_rows(mask, shape, self._name("forward"))
        learning = self.training and not self.frozen
        with torch.autocast(x.device.type, enabled=False):
            if real is not None:
                flat = flat.masked_fill(~real[:, None], 0)
            if learning and self.kmeans_init and not self.state.is_initialized:
                seen = flat.detach() if real is None else flat.detach()[real]
                self.state.start(seen, self.depth, generator, self.projections)
            depths = depths_to_use(self, shape, depth, generator, x.device)
            asked = self.depth if depth is None or isinstance(depth, Tensor) else depth
            levels = self.depth if learning else asked
            done = quantize(
                self, flat, real, depths, levels, learning=learning, generator=generator
            )
        codes = done.codes[:, :asked]
        codes = codes if real is None else codes.masked_fill(~real[:, None], -1)
        dead = self.state.dead_entries() if done.dead is None else done.dead
        return QuantizerOutput(
            quantized=self._restore(done.quantized, shape).to(x.dtype),
            codes=codes.reshape(*shape, codes.shape[1]),
            commitment_loss=done.commitment_loss,
            codebook_loss=done.codebook_loss,
            stats=CodeStats(codes, self.codebook_sizes, done.errors[:asked], dead),
            depths=None if depths is None else depths.reshape(shape),
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
            beam: Prefixes kept per vector; the beam the quantizer was fitted for when None. 1 is
                the greedy rule of the paper and of `forward` (to rounding), with `similarity`.
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
            if beam == 1 and not refining and not is_plain(self):
                codes = greedy_codes(self, flat, depth, max_bytes)
                return codes.reshape(*shape, depth)
            products = None
            if self.projections is None:
                products = self.state.products(depth, both_ways=refining, max_bytes=max_bytes)
            codes = encode_refined(
                flat,
                self._levels(depth),
                beam=beam,
                rounds=icm_rounds,
                perturbations=perturbations,
                penalties=self.state.level_penalties(depth),
                seed=seed,
                products=products,
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

    fit = matrix_fitting.fit
    to_faiss = faiss_bridge.to_faiss
    from_faiss = classmethod(faiss_bridge.from_faiss)

    def _sum(self, codes: Tensor) -> Tensor:
        return sum_codewords(codes, self._levels(codes.shape[1]))

    def set_codebooks(self, codebooks: Tensor | NDArray) -> Self:
        """Take over given tables, and count them as initialised; return the quantizer.

        Args:
            codebooks: Shape (depth, K, dim), (1, K, dim) for a shared codebook, of codebook_dim in
                place of dim where there is one; rows beyond the size of a level are ignored.

        Raises:
            ShapeError: If the shape is another.
            DataError: If a value is not finite.
            ConfigError: If the quantizer is frozen.
        """
        if self.frozen:
            raise ConfigError(
                f"{self._name('set_codebooks')}: the quantizer is frozen. Make a new one."
            )
        where, state = self._name("set_codebooks"), self.state
        tables = checks.given_tables(where, codebooks, state.tables, state.codebook_sizes)
        self.state.set_tables(tables, vectors=max(self.codebook_sizes))
        return self

    def _stored(self) -> dict[str, Tensor]:
        names = [*_ARTIFACT_TENSORS, *(["sums"] if self.update == "paper" else [])]
        stored = {name: getattr(self.state, name) for name in names}
        if self.projections is not None:
            own = self.projections.state_dict()
            stored |= {f"projections.{name}": tensor for name, tensor in own.items()}
        return stored | ({"penalties": self.penalties} if self.penalties.numel() else {})

    def _adopt(self, path: str | Path, tensors: Mapping[str, Tensor]) -> None:
        expected = self._stored()
        if "penalties" in tensors:
            expected["penalties"] = self.penalties.new_empty(self.depth, max(self.codebook_sizes))
        check_tensors(path, expected, tensors)
        state = {f"state.{name}": tensor for name, tensor in self.state.state_dict().items()}
        own = {n if n.startswith("projections.") else f"state.{n}": t for n, t in tensors.items()}
        self.load_state_dict(state | own)

    def _codewords(self) -> list[Tensor]:
        return self._levels(self.depth)

    def _levels(self, depth: int) -> list[Tensor]:
        """Return the codewords (K_d, dim) of the first levels, without gradients."""
        tables = [table.detach() for table in self.state.levels(depth)]
        if self.projections is None:
            return tables
        with torch.no_grad():
            return [self.projections.back(table, level) for level, table in enumerate(tables)]
