"""The neural residual quantizer: the lowest error, where the time to encode is no object."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.functional.arguments import check_count
from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, level_tables
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.artifact import check_tensors
from rqtoolkit.quantizers import checks
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.network_training import check_training, held_out_rows, standard_units
from rqtoolkit.quantizers.neural_fitting import Training, train_levels
from rqtoolkit.quantizers.neural_search import NeuralLevels
from rqtoolkit.quantizers.precision import exact_values
from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["NeuralResidualQuantizer"]

_FIT_ROWS_PER_CODE = 4096
_LARGEST_SHARE = 0.97  # of the error of tables; networks gaining less are not worth held-out rows


class NeuralResidualQuantizer(Quantizer):
    """Residual quantization where each level's codewords are computed from the levels before.

    A network of each level turns its table into codewords made for the partial sum at hand (see
    `ImplicitCodebook`), which a fixed table cannot: the same codes say more. Encoding tries
    `candidates` codewords for each kept prefix and is slower by orders of magnitude than that of
    `ResidualQuantizer`; decoding runs each network once. Everything is float32, whatever a parent
    module is cast to.

    Args:
        dim: Vector size.
        depth: Number of residual levels.
        codebook_size: Entries of each level, or a sequence of one number per level.
        width: Features of each level's network.
        blocks: Residual blocks that every candidate passes.
        candidates: Codewords that the network evaluates for each prefix, the nearest by a fixed
            table; from codebook_size on, all.
        channels_first: Inputs are (B, dim, ...) in place of (..., dim). Codes stay depth-last.
        beam: Prefixes that `encode` keeps unless told otherwise; `fit` sets it.

    Example:
        >>> quantizer = NeuralResidualQuantizer(dim=8, depth=3, codebook_size=16)
        >>> quantizer.fit(torch.randn(1000, 8), epochs=2).encode(torch.randn(4, 8)).shape
        torch.Size([4, 3])

    References:
        Huijben et al., "Residual Quantization with Implicit Neural Codebooks", ICML 2024.
        https://arxiv.org/abs/2401.14732
        Vallaeys et al., "Qinco2: Vector Compression and Search with Improved Implicit Neural
        Codebooks", ICLR 2025. https://arxiv.org/abs/2501.03078
    """

    arguments = (
        "dim",
        "depth",
        "codebook_size",
        "width",
        "blocks",
        "candidates",
        "channels_first",
        "beam",
    )

    def __init__(
        self,
        dim: int,
        depth: int,
        codebook_size: int | Sequence[int],
        *,
        width: int = 256,
        blocks: int = 0,
        candidates: int = 16,
        channels_first: bool = False,
        beam: int = 16,
    ) -> None:
        super().__init__()
        sizes = checks.level_sizes("NeuralResidualQuantizer", dim, depth, codebook_size)
        for name, value in {"width": width, "candidates": candidates, "beam": beam}.items():
            check_count("NeuralResidualQuantizer", name, value)
        check_count("NeuralResidualQuantizer", "blocks + 1", blocks + 1)
        self.dim, self.depth = dim, depth
        self.codebook_size = list(sizes) if isinstance(codebook_size, Sequence) else sizes[0]
        self.codebook_sizes = sizes
        self.width, self.blocks, self.candidates = width, blocks, candidates
        self.channels_first = channels_first
        self.beam = beam
        generator = torch.Generator().manual_seed(0)
        tables = [torch.randn(size, dim, generator=generator) / dim**0.5 for size in sizes]
        self.levels = self._from_tables(tables, torch.zeros(dim), torch.ones(()), generator)

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        *,
        beam: int | None = None,
        depth: int | None = None,
        candidates: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> Tensor:
        """Encode vectors as stacks of codes.

        Args:
            x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first; finite.
            beam: Prefixes kept per vector; the quantizer's own when None.
            depth: Levels to encode, at most the quantizer's, which is the default.
            candidates: Codewords evaluated for each prefix; the quantizer's own when None.
            max_bytes: Bound on what is held at once beyond input and output.

        Returns:
            Codes, shape (..., depth), int64, in [0, codebook_size of the level).

        Raises:
            ShapeError: If x does not have dim channels.
            DataError: If x has NaN or infinite values.
            ConfigError: If beam, depth or candidates is out of range.
        """
        flat, shape, beam, depth = self._to_encode(x, beam, depth)
        candidates = self.candidates if candidates is None else candidates
        check_count(self._name("encode"), "candidates", candidates)
        with torch.autocast(x.device.type, enabled=False):
            codes = self.levels.encode(
                self.levels.normalize(flat),
                beam=beam,
                candidates=candidates,
                depth=depth,
                max_bytes=max_bytes,
            )
        return codes.reshape(*shape, depth)

    def partial_sums(self, codes: Tensor) -> Tensor:
        """Sums of the first 1, 2, … d codewords; arguments and errors as in `decode`.

        Returns:
            Vectors, channels last: shape (..., d, dim), float32.
        """
        flat = checks.check_codes(codes, self.codebook_sizes, self._name("partial_sums"))
        with torch.no_grad(), torch.autocast(flat.device.type, enabled=False):
            sums = torch.stack(self.levels.partial_sums(flat), dim=1)
            return self.levels.restore(sums).reshape(*codes.shape, self.dim)

    def fit(
        self,
        X: NDArray | Tensor,
        *,
        epochs: int = 50,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        patience: int = 10,
        training_beam: int = 3,
        beam: int = 16,
        time_budget: float | None = None,
        max_rows: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> "NeuralResidualQuantizer":
        """Train offline on a matrix: a `ResidualQuantizer` first, whose tables the networks bend.

        A twentieth of the rows (4096 at most) is held out, and what the networks are when its error
        is least stays. Where they do not lower it by 3%, as with few vectors, the result is the
        tables of `ResidualQuantizer.fit` on all rows. The same seed gives the same result, unless
        time_budget ends the training.

        Args:
            X: Vectors, shape (N, dim), numpy (also memory-mapped) or torch, finite, N at least the
                largest codebook size.
            epochs: Passes over the vectors, at most.
            batch_size: Vectors a step.
            learning_rate: Of AdamW at its highest.
            patience: Passes without a lower held-out error after which training ends.
            training_beam: Stacks of codes kept of each vector in training, from all of which the
                networks learn; they share out the candidates of one.
            beam: Prefixes that `encode` keeps from then on.
            time_budget: Seconds after which training ends, the learning rate fallen to zero by
                then; the tables that it starts from may take longer.
            max_rows: Rows used, drawn at random; 4096 per codeword when None.
            seed: Fixes the result.
            progress: Told of each stretch of work.

        Returns:
            The quantizer itself, fitted.

        Raises:
            ShapeError: If X is not (N, dim).
            DataError: If X is not numeric or finite, or has too few rows.
            ConfigError: If a number is out of range.
            MissingDependencyError: If faiss is not installed.
        """
        where = self._name("fit")
        counts = {"epochs": epochs, "batch_size": batch_size, "patience": patience}
        counts |= {"training_beam": training_beam, "beam": beam}
        amounts = {"learning_rate": learning_rate, "time_budget": time_budget}
        check_training(where, self.frozen, counts=counts, amounts=amounts)
        deadline = None if time_budget is None else time.monotonic() + time_budget
        largest = max(self.codebook_sizes)
        x = checks.training_rows(
            where,
            X,
            self.dim,
            min_rows=largest,
            max_rows=_FIT_ROWS_PER_CODE * largest if max_rows is None else max_rows,
            seed=seed,
        ).to(self.levels.center.device)
        generator = torch.Generator().manual_seed(seed % 2**63)
        kept, held_out = (
            x[rows.to(x.device)] for rows in held_out_rows(len(x), largest, generator)
        )

        def start(rows: Tensor) -> NeuralLevels:
            tables = ResidualQuantizer(self.dim, self.depth, self.codebook_sizes).to(x.device)
            tables.fit(rows, time_budget=time_budget, seed=seed, progress=progress)
            levels = level_tables(tables.codebooks, self.codebook_sizes, self.depth)
            return self._from_tables(levels, *standard_units(rows), generator)

        self.beam = beam
        self.levels = start(kept)
        if not len(held_out):
            return self
        training = Training(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            patience=patience,
            beam=training_beam,
            candidates=max(1, self.candidates // training_beam),
            final_beam=beam,
            final_candidates=self.candidates,
            deadline=deadline,
        )
        share = train_levels(
            self.levels,
            self.levels.normalize(kept),
            self.levels.normalize(held_out),
            training,
            generator=generator,
            progress=progress,
        )
        if share > _LARGEST_SHARE and (deadline is None or time.monotonic() < deadline):
            self.levels = start(x)
        return self

    def _from_tables(
        self, tables: Sequence[Tensor], center: Tensor, spread: Tensor, generator: torch.Generator
    ) -> NeuralLevels:
        """Return levels that are these tables until they are trained."""
        levels = NeuralLevels(
            tables,
            center=center,
            spread=spread,
            width=self.width,
            blocks=self.blocks,
            generator=generator,
        )
        return levels.to(center.device)

    def _sum(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            return self.levels.decode(codes, max_bytes=DEFAULT_MAX_BYTES)

    def _stored(self) -> dict[str, Tensor]:
        return dict(self.levels.state_dict())

    def _adopt(self, path: str | Path, tensors: Mapping[str, Tensor]) -> None:
        check_tensors(path, self._stored(), tensors)
        self.levels.load_state_dict(dict(tensors))

    def _apply(self, fn: Any, recurse: bool = True) -> "NeuralResidualQuantizer":
        """Follow the parent to another device, never to another precision."""
        with exact_values(self):
            super()._apply(fn, recurse)
        return self
