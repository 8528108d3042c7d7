"""The RQ-VAE of vectors: an autoencoder whose latents are residual-quantized."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf, sqrt
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, chunk_slices
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.artifact import check_tensors
from rqtoolkit.quantizers import checks
from rqtoolkit.quantizers.autoencoder_fitting import Parts, train_autoencoder
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.network_training import (
    Schedule,
    check_training,
    held_out_rows,
    standard_units,
)
from rqtoolkit.quantizers.precision import exact_values
from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["ResidualAutoencoder"]

_FIT_ROWS_PER_CODE = 4096
_STEPS_PER_EPOCH = 16  # at least
_QUANTIZER = "quantizer."


class ResidualAutoencoder(Quantizer):
    """An RQ-VAE of vectors: an MLP makes latents, a residual quantizer codes them, an MLP decodes.

    The codes of semantic IDs as TIGER learns them. It is neither variational nor better than
    `ResidualQuantizer` at keeping vectors: it takes many times as long to fit, and is here for
    those who want the learned latents, or to compare with the literature. Vectors are centred and
    scaled inside, by one number for all columns, so that embeddings of unit norm do not all get
    one code. Everything is float32, whatever a parent module is cast to.

    Args:
        dim: Vector size.
        depth: Number of residual levels.
        codebook_size: Entries of each level, or a sequence of one number per level.
        latent_dim: Size of the latents that are quantized.
        hidden: Width of each hidden layer of the encoder; the decoder has them the other way round.
        channels_first: Inputs are (B, dim, ...) in place of (..., dim). Codes stay depth-last.
        beam: Prefixes that `encode` keeps unless told otherwise, nearest in latents.

    Example:
        >>> quantizer = ResidualAutoencoder(dim=8, depth=3, codebook_size=16, hidden=(32,))
        >>> quantizer.fit(torch.randn(1000, 8), epochs=2).encode(torch.randn(4, 8)).shape
        torch.Size([4, 3])

    References:
        Rajput et al., "Recommender Systems with Generative Retrieval", NeurIPS 2023, section 3.1
        (TIGER). https://arxiv.org/abs/2305.05065
        Zeghidour et al., "SoundStream: An End-to-End Neural Audio Codec", IEEE/ACM TASLP 2021
        (residual quantization of latents). https://arxiv.org/abs/2107.03312
    """

    center: Tensor
    spread: Tensor

    arguments = (
        "dim",
        "depth",
        "codebook_size",
        "latent_dim",
        "hidden",
        "channels_first",
        "beam",
    )

    def __init__(
        self,
        dim: int,
        depth: int,
        codebook_size: int | Sequence[int],
        *,
        latent_dim: int = 32,
        hidden: Sequence[int] = (512, 256, 128),
        channels_first: bool = False,
        beam: int = 1,
    ) -> None:
        super().__init__()
        sizes = checks.level_sizes("ResidualAutoencoder", dim, depth, codebook_size)
        check_count("ResidualAutoencoder", "latent_dim", latent_dim)
        for width in hidden:
            check_count("ResidualAutoencoder", "hidden", width)
        check_count("ResidualAutoencoder", "beam", beam)
        self.dim, self.depth = dim, depth
        self.codebook_size = list(sizes) if isinstance(codebook_size, Sequence) else sizes[0]
        self.codebook_sizes = sizes
        self.latent_dim, self.hidden = latent_dim, list(hidden)
        self.channels_first = channels_first
        self.beam = beam
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(()))
        self.encoder, self.quantizer, self.decoder = self._new_parts(
            torch.Generator().manual_seed(0)
        )

    @torch.no_grad()
    def latents(self, x: Tensor, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Tensor:
        """Compute what is quantized of vectors, which `quantizer` codes.

        Args:
            x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first; finite.
            max_bytes: Bound on what is held at once beyond input and output.

        Returns:
            Latents, channels last: shape (..., latent_dim), float32.

        Raises:
            ShapeError: If x does not have dim channels.
            DataError: If x has NaN or infinite values.
        """
        flat, shape = self._flatten(x, "latents")
        checks.check_finite(flat, self._name("latents"))
        return self._latents(flat, max_bytes).reshape(*shape, self.latent_dim)

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        *,
        beam: int | None = None,
        depth: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> Tensor:
        """Encode vectors as the stacks of codes whose sums are nearest to their latents.

        Args:
            x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first; finite.
            beam: Prefixes kept per vector; the quantizer's own when None.
            depth: Levels to encode, at most the quantizer's, which is the default.
            max_bytes: Bound on what is held at once beyond input and output.

        Returns:
            Codes, shape (..., depth), int64, in [0, codebook_size of the level).

        Raises:
            ShapeError: If x does not have dim channels.
            DataError: If x has NaN or infinite values.
            ConfigError: If beam or depth is out of range.
        """
        flat, shape, beam, depth = self._to_encode(x, beam, depth)
        latents = self._latents(flat, max_bytes)
        codes = self.quantizer.encode(latents, beam=beam, depth=depth, max_bytes=max_bytes)
        return codes.reshape(*shape, depth)

    def fit(
        self,
        X: NDArray | Tensor,
        *,
        epochs: int = 100,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        patience: int = 20,
        commitment_weight: float = 0.25,
        time_budget: float | None = None,
        max_rows: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> "ResidualAutoencoder":
        """Train networks and codebooks afresh on a matrix.

        A twentieth of the rows (4096 at most) is held out, and the state in which its error is
        least stays; the others judge where that leaves too few. The same seed gives the same
        result, unless time_budget ends the training.

        Args:
            X: Vectors, shape (N, dim), numpy (also memory-mapped) or torch, finite, N at least the
                largest codebook size.
            epochs: Passes over the vectors, at most.
            batch_size: Vectors a step; a sixteenth of all where that is less, since few large
                steps leave codebooks behind the networks, and codes unused.
            learning_rate: Of AdamW at its highest; it falls to zero as half a cosine.
            patience: Passes without a lower held-out error after which training ends.
            commitment_weight: Weight of the latents' distance to their codewords in the loss.
            time_budget: Seconds after which training ends, the learning rate fallen to zero by
                then.
            max_rows: Rows used, drawn at random; 4096 per codeword when None.
            seed: Fixes the result.
            progress: Told of each epoch.

        Returns:
            The quantizer itself, fitted.

        Raises:
            ShapeError: If X is not (N, dim).
            DataError: If X is not numeric or finite, or has too few rows.
            ConfigError: If a number is out of range.
        """
        where = self._name("fit")
        counts = {"epochs": epochs, "batch_size": batch_size, "patience": patience}
        amounts = {"learning_rate": learning_rate, "time_budget": time_budget}
        check_training(where, self.frozen, counts=counts, amounts=amounts)
        if not 0 <= commitment_weight < inf:
            raise ConfigError(
                f"{where}: commitment_weight={commitment_weight} has to be at least 0 and finite."
            )
        deadline = None if time_budget is None else time.monotonic() + time_budget
        largest = max(self.codebook_sizes)
        x = checks.training_rows(
            where,
            X,
            self.dim,
            min_rows=largest,
            max_rows=_FIT_ROWS_PER_CODE * largest if max_rows is None else max_rows,
            seed=seed,
        ).to(self.center.device)
        generator = torch.Generator().manual_seed(seed % 2**63)
        self.center, self.spread = standard_units(x)
        parts = self._new_parts(generator)
        for part in parts:
            part.to(x.device)
        self.encoder, self.quantizer, self.decoder = parts
        x = (x - self.center) / self.spread
        kept, held_out = (
            x[rows.to(x.device)] for rows in held_out_rows(len(x), largest, generator)
        )
        schedule = Schedule(
            epochs=epochs,
            batch_size=max(1, min(batch_size, len(x) // _STEPS_PER_EPOCH)),
            learning_rate=learning_rate,
            patience=patience,
            deadline=deadline,
        )
        judged = held_out if len(held_out) else kept
        train_autoencoder(
            parts,
            kept,
            judged,
            schedule,
            commitment_weight=commitment_weight,
            generator=generator,
            progress=progress,
        )
        return self.train(self.training)

    def _new_parts(self, generator: torch.Generator) -> Parts:
        widths = [self.dim, *self.hidden, self.latent_dim]
        with torch.random.fork_rng(devices=[]):
            quantizer = ResidualQuantizer(
                self.latent_dim, self.depth, self.codebook_sizes, beam=self.beam
            )
        return Parts(_mlp(widths, generator), quantizer, _mlp(widths[::-1], generator))

    def _latents(self, x: Tensor, max_bytes: int) -> Tensor:
        """Latents (N, latent_dim) of vectors (N, dim)."""
        latents = x.new_empty(len(x), self.latent_dim)
        with torch.autocast(x.device.type, enabled=False):
            for rows in chunk_slices(len(x), self._bytes_per_row(), max_bytes):
                latents[rows] = self.encoder((x[rows] - self.center) / self.spread)
        return latents

    @torch.no_grad()
    def _sum(self, codes: Tensor) -> Tensor:
        vectors = self.center.new_empty(len(codes), self.dim)
        with torch.autocast(codes.device.type, enabled=False):
            for rows in chunk_slices(len(codes), self._bytes_per_row(), DEFAULT_MAX_BYTES):
                decoded = self.decoder(self.quantizer.decode(codes[rows]))
                vectors[rows] = decoded * self.spread + self.center
        return vectors

    def _bytes_per_row(self) -> int:
        """Of what a network has at work, two layers and their activations."""
        return 8 * (2 * self.dim + self.latent_dim + sum(self.hidden))

    def _stored(self) -> dict[str, Tensor]:
        tables = self.quantizer._stored()
        return self._networks() | {_QUANTIZER + name: tensor for name, tensor in tables.items()}

    def _adopt(self, path: str | Path, tensors: Mapping[str, Tensor]) -> None:
        inner = {name for name in tensors if name.startswith(_QUANTIZER)}
        networks = {name: tensors[name] for name in tensors if name not in inner}
        tables = {name.removeprefix(_QUANTIZER): tensors[name] for name in inner}
        check_tensors(path, self._networks(), networks)
        self.quantizer._adopt(path, tables)
        self.load_state_dict({**self.state_dict(), **networks})

    def _networks(self) -> dict[str, Tensor]:
        """Return everything but the tables of latents, by name."""
        state = self.state_dict()
        return {name: state[name] for name in state if not name.startswith(_QUANTIZER)}

    def _apply(self, fn: Any, recurse: bool = True) -> "ResidualAutoencoder":
        """Follow the parent to another device, never to another precision."""
        with exact_values(self):
            super()._apply(fn, recurse)
        return self


@torch.no_grad()
def _mlp(widths: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with ReLU between them, whose weights keep the variance of what they get."""
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layer = nn.utils.skip_init(nn.Linear, width, following)
        gain = 2.0 if layers else 1.0  # ReLU halves the power of its input
        weight = torch.randn(following, width, generator=generator)
        layer.weight.copy_(weight * sqrt(gain / width))
        layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
