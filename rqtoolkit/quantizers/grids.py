"""Residual quantization onto grids that follow from a formula: no table, nothing that can die."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, chunk_slices
from rqtoolkit.functional.gradient import straight_through
from rqtoolkit.io.artifact import check_tensors
from rqtoolkit.quantizers import checks
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.depth_dropout import depths_to_use, levels_in_use
from rqtoolkit.quantizers.output import CodeStats, QuantizerOutput
from rqtoolkit.quantizers.projections import linear_float32

__all__ = ["GridPass", "GridQuantizer"]

_MOST_BITS = 62  # of a code, so that sizes are int64 too
_MOST_LISTED = 2**20


@dataclass
class GridPass:
    """What a pass of N vectors through all levels of a grid gives.

    Attributes:
        codes: Shape (N, depth), int64.
        left: What each level left over, (N, code_dim) each, without gradient.
        quantized: Sum of the chosen points over the levels in use, shape (N, code_dim).
    """

    codes: Tensor
    left: list[Tensor]
    quantized: Tensor


class GridQuantizer(Quantizer):
    """What scalar and binary residual quantizers share.

    A linear map leads from vectors to the few dimensions of the codes, and another back; with as
    many dimensions as that, there is none. A level rounds each dimension to one of `radices` values
    evenly spaced over ±1, times the scale of the level, and hands on what is left over. Scales fall
    by the number of values, so that the values of a level divide a cell of the level before evenly:
    d levels are one grid of radix^d values, and greedy codes name its nearest point.

    Args:
        dim: Vector size.
        depth: Number of residual levels.
        radices: Values of each dimension of the codes, at least 2.
        most_significant_first: Whether a code counts up in the last dimension, not in the first.
        depth_dropout: As for `ResidualQuantizer`.
        channels_first: As for `ResidualQuantizer`.

    Raises:
        ConfigError: If a number is out of its range.
    """

    radices: Tensor
    places: Tensor

    def __init__(
        self,
        dim: int,
        depth: int,
        radices: Sequence[int],
        *,
        most_significant_first: bool,
        depth_dropout: float,
        channels_first: bool,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        size = prod(radices)
        self.codebook_sizes = checks.level_sizes(where, dim, depth, size)
        if size > 2**_MOST_BITS:
            raise ConfigError(
                f"{where}: a code would have {size} values; got more than 2^{_MOST_BITS}. Take "
                "fewer dimensions and more depth."
            )
        if not 0 <= depth_dropout <= 1:
            raise ConfigError(f"{where}: depth_dropout={depth_dropout} has to be in [0, 1].")
        self.dim, self.depth, self.code_dim = dim, depth, len(radices)
        self.depth_dropout, self.channels_first = depth_dropout, channels_first
        order = list(radices)[::-1] if most_significant_first else list(radices)
        places = [prod(order[:position]) for position in range(len(order))]
        # Integers, which no parent module casts to another precision.
        self.register_buffer("radices", torch.tensor(radices), persistent=False)
        self.register_buffer(
            "places",
            torch.tensor(places[::-1] if most_significant_first else places),
            persistent=False,
        )
        projects = dim != self.code_dim
        self.project_in = nn.Linear(dim, self.code_dim) if projects else None
        self.project_out = nn.Linear(self.code_dim, dim) if projects else None

    @abstractmethod
    def _bounded(self, z: Tensor) -> Tensor:
        """Bring projected vectors (N, code_dim) to where the grid is."""

    @abstractmethod
    def _unit(self) -> float:
        """Return the scale of the first level."""

    @abstractmethod
    def _losses(
        self, z: Tensor, done: GridPass, in_use: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return commitment loss and entropy loss of projected vectors, scalars."""

    @property
    def codebooks(self) -> Tensor:
        """All codewords as they are added up, for what wants a table: shape (depth, K, dim).

        Raises:
            ConfigError: If there are more than 2^20 in a level.
        """
        size = self.codebook_sizes[0]
        if size > _MOST_LISTED:
            raise ConfigError(
                f"{self._name('codebooks')}: {size} codewords are too many for a table; got more "
                f"than {_MOST_LISTED}. Use decode(codes)."
            )
        digits = self._digits_of(torch.arange(size, device=self.places.device))
        tables = torch.stack([self._points(digits, level) for level in range(self.depth)])
        if self.project_out is None:
            return tables
        with torch.no_grad():
            tables = tables @ self.project_out.weight.float().T
            tables[0] += self.project_out.bias.float()  # once, whatever the prefix
        return tables

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        depth: int | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> QuantizerOutput:
        """Quantize, with a straight-through gradient past the rounding.

        Args:
            x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first; floating point.
            mask: True for vectors, False for padding, bool, shape of the codes without their last
                axis. Padding is quantized to 0 with codes of -1, and changes nothing for the rest.
            depth: Levels to use: a number, or integers in the shape of mask or of its first axes,
                clamped to the levels there are; all, or what `depth_dropout` draws, when None.
            generator: Source of what is drawn, on the device of x; torch's default when None.

        Returns:
            Quantized vectors, codes, losses and statistics. Errors and the commitment loss are
            those in the dimensions of the codes.

        Raises:
            ShapeError: If x does not have dim channels, or mask or depth do not fit it.
            ConfigError: If depth is out of range.
        """
        flat, shape = self._flatten(x, "forward")
        real = checks.real_rows(mask, shape, self._name("forward"))
        with torch.autocast(x.device.type, enabled=False):
            flat = flat if real is None else flat.masked_fill(~real[:, None], 0)
            depths = depths_to_use(self, shape, depth, generator, x.device)
            levels = self.depth if depth is None or isinstance(depth, Tensor) else depth
            in_use = levels_in_use(real, depths, levels)
            z = self._into(flat)
            done = self._quantize(z.detach(), levels, in_use)
            quantized = self._back(straight_through(z, done.quantized))
            quantized = quantized if real is None else quantized * real[:, None]
            commitment_loss, entropy_loss = self._losses(z, done, in_use)
        codes = done.codes if real is None else done.codes.masked_fill(~real[:, None], -1)
        return QuantizerOutput(
            quantized=self._restore(quantized, shape).to(x.dtype),
            codes=codes.reshape(*shape, codes.shape[1]),
            commitment_loss=commitment_loss,
            codebook_loss=z.new_zeros(()),
            entropy_loss=entropy_loss,
            stats=CodeStats(codes, self.codebook_sizes, _errors(done, in_use)),
            depths=None if depths is None else depths.reshape(shape),
        )

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        *,
        beam: int | None = None,
        depth: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> Tensor:
        """Encode vectors as stacks of codes.

        Args:
            x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first; finite.
            beam: Without effect, as greedy codes are the best.
            depth: Levels to encode; all when None.
            max_bytes: Bound on the memory at work.

        Returns:
            Codes, shape (..., depth), int64, in [0, codebook_size).

        Raises:
            ShapeError: If x does not have dim channels.
            DataError: If x has NaN or infinite values.
            ConfigError: If beam or depth is out of range.
        """
        flat, shape, _, depth = self._to_encode(x, beam, depth)
        # Sizes by shape: len() would fix them in exported programs.
        codes = torch.empty(flat.shape[0], depth, dtype=torch.int64, device=flat.device)
        row_bytes = flat.element_size() * (self.dim + (8 + depth) * self.code_dim)
        with torch.autocast(x.device.type, enabled=False):
            for rows in chunk_slices(flat.shape[0], row_bytes, max_bytes):
                codes[rows] = self._quantize(self._into(flat[rows]), depth, None).codes
        return codes.reshape(*shape, depth)

    def _into(self, x: Tensor) -> Tensor:
        """Return vectors (N, dim) in the dimensions of the codes, within the grid."""
        return self._bounded(x if self.project_in is None else linear_float32(x, self.project_in))

    def _back(self, points: Tensor) -> Tensor:
        return points if self.project_out is None else linear_float32(points, self.project_out)

    def _quantize(self, z: Tensor, depth: int, in_use: Tensor | None) -> GridPass:
        """Round vectors (N, code_dim), without gradient, level after level."""
        residual, quantized = z, torch.zeros_like(z)
        codes, left = [], []
        for level in range(depth):
            digits = self._digits(residual, level)
            points = self._points(digits, level)
            residual = residual - points
            quantized = quantized + (points if in_use is None else points * in_use[:, level, None])
            codes.append((digits * self.places).sum(dim=1))
            left.append(residual)
        return GridPass(torch.stack(codes, dim=1), left, quantized)

    def _scale(self, level: int) -> Tensor:
        """Return the largest value of each dimension at a level, shape (code_dim,)."""
        return self._unit() * self.radices.float() ** -level

    def _digits(self, residual: Tensor, level: int) -> Tensor:
        """Return which value of each dimension is nearest, (N, code_dim), from 0 on."""
        last = self.radices - 1
        steps = (residual / self._scale(level) + 1) * last / 2
        # What is not a number has to get some code: integers made of NaN are any number.
        nearest = (steps.nan_to_num() + 0.5).floor().long()
        return torch.minimum(nearest.clamp_min(0), last)

    def _points(self, digits: Tensor, level: int) -> Tensor:
        return self._scale(level) * (2 * digits / (self.radices - 1) - 1)

    def _digits_of(self, codes: Tensor) -> Tensor:
        """Return the digits (N, code_dim) of the codes (N,) of one level."""
        return codes[:, None] // self.places % self.radices

    def _sum(self, codes: Tensor) -> Tensor:
        points = [self._points(self._digits_of(own), d) for d, own in enumerate(codes.unbind(1))]
        return self._back(torch.stack(points).sum(dim=0)).detach()

    def _stored(self) -> dict[str, Tensor]:
        scales = torch.stack([self._scale(level) for level in range(self.depth)])
        return self.state_dict() | {"scales": scales}

    def _adopt(self, path: str | Path, tensors: Mapping[str, Tensor]) -> None:
        expected = self._stored()
        check_tensors(path, expected, tensors)
        if not torch.allclose(tensors["scales"].float(), expected["scales"]):
            raise ArtifactError(
                f"load: {path} has scales that its arguments do not give; got a file that was "
                "changed, or written by another version. Write it again."
            )
        self.load_state_dict({name: t for name, t in tensors.items() if name != "scales"})


def _errors(done: GridPass, in_use: Tensor | None) -> Tensor:
    """Return the squared error after each level, (depth,), averaged over what uses the level."""
    squares = torch.stack([left.square().sum(dim=1) for left in done.left], dim=1)
    if in_use is None:
        return squares.sum(dim=0) / max(squares.shape[0], 1)
    return (squares * in_use).sum(dim=0) / in_use.sum(dim=0).clamp_min(1)
