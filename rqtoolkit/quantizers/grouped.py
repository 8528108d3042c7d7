"""Groups of dimensions, each with a residual quantizer of its own: a product of residuals."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, chunk_slices
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.artifact import check_tensors
from rqtoolkit.quantizers import checks, faiss_bridge
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.depth_dropout import depths_to_use
from rqtoolkit.quantizers.output import CodeStats, QuantizerOutput
from rqtoolkit.quantizers.residual import ResidualQuantizer
from rqtoolkit.quantizers.rotations import balanced_rotation, procrustes, random_rotation

__all__ = ["GroupedResidualQuantizer"]

_ROTATIONS = (None, "random", "pca", "opq")
_TURNS = 8  # of fitting and turning; the error hardly falls afterwards
_TURN_ROWS = 2**15
_TURNED_SHARE = 4  # of the bytes allowed, for vectors turned and cut


class GroupedResidualQuantizer(Quantizer):
    """Cut vectors into `groups` equal parts and quantize each with a `ResidualQuantizer`.

    At equal bits its error is higher than that of one residual quantizer over all dimensions, and
    encoding, decoding and search tables cost `groups` times less. Depth 1 is product quantization.

    Codes have one column for each level of each group, all groups' first level first: shape
    (..., depth · groups). Any prefix decodes; a group without a code in it adds nothing.

    Args:
        dim: Vector size, a multiple of groups.
        depth: Residual levels of each group.
        codebook_size: Entries of each level, or a sequence of one number per level.
        groups: Parts of the vector.
        rotation: Turn vectors first: "random" spreads variance evenly over the groups, "pca" deals
            out principal axes, "opq" goes on from there by turns of quantizing and turning. "pca"
            and "opq" are found by `fit`; until then nothing is turned.
        channels_first: Inputs are (B, dim, ...) in place of (..., dim). Codes stay last.
        beam: Prefixes that `encode` keeps in each group unless told otherwise; `fit` sets it.
        online: How the groups' `ResidualQuantizer`s quantize and learn in a network: any of its
            other arguments. What `depth_dropout` draws for a sample, all groups use.

    Example:
        >>> quantizer = GroupedResidualQuantizer(dim=8, depth=3, codebook_size=16, groups=2)
        >>> quantizer(torch.randn(4, 10, 8)).codes.shape
        torch.Size([4, 10, 6])

    References:
        Jégou, Douze & Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011.
        Ge et al., "Optimized Product Quantization", CVPR 2013.
        Yang et al., "HiFi-Codec: Group-residual Vector quantization for High Fidelity Audio
        Codec", 2023. https://arxiv.org/abs/2305.02765
    """

    axes: Tensor
    """Rows are the axes that vectors are turned to, shape (dim, dim); empty without a rotation."""

    arguments = ("dim", "depth", "codebook_size", "groups", "rotation", "channels_first", "beam")

    def __init__(
        self,
        dim: int,
        depth: int,
        codebook_size: int | Sequence[int],
        *,
        groups: int,
        rotation: Literal["random", "pca", "opq"] | None = None,
        channels_first: bool = False,
        beam: int = 1,
        **online: Any,
    ) -> None:
        super().__init__()
        sizes = checks.level_sizes("GroupedResidualQuantizer", dim, depth, codebook_size)
        check_count("GroupedResidualQuantizer", "groups", groups)
        if dim % groups:
            raise ConfigError(
                f"GroupedResidualQuantizer: groups={groups} does not divide dim={dim}. Choose "
                "a divisor."
            )
        if rotation not in _ROTATIONS:
            raise ConfigError(
                f"GroupedResidualQuantizer: rotation={rotation!r} is unknown. Choose 'random', "
                "'pca', 'opq' or None."
            )
        self.dim, self.depth, self.groups = dim, depth, groups
        self.codebook_size = list(sizes) if isinstance(codebook_size, Sequence) else sizes[0]
        self.codebook_sizes = tuple(size for size in sizes for _ in range(groups))
        self.rotation, self.channels_first, self.online = rotation, channels_first, online
        self.parts = nn.ModuleList(
            ResidualQuantizer(dim // groups, depth, codebook_size, beam=beam, **online)
            for _ in range(groups)
        )
        self.depth_dropout = self._quantizers()[0].depth_dropout
        axes = torch.empty(0)
        if rotation is not None:
            axes = random_rotation(dim) if rotation == "random" else torch.eye(dim)
        self.register_buffer("axes", axes)

    @property
    def beam(self) -> int:  # type: ignore[override]
        """Prefixes that `encode` keeps in each group unless told otherwise."""
        return self._quantizers()[0].beam

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        depth: int | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> QuantizerOutput:
        """Quantize; in training mode, also let every group's codebooks learn from x.

        Args:
            x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first; floating point.
            mask: As for `ResidualQuantizer`.
            depth: As for `ResidualQuantizer`, of each group.
            generator: As for `ResidualQuantizer`.

        Returns:
            Quantized vectors, codes, losses (means over the groups) and statistics (distortion is
            of whole vectors).

        Raises:
            ShapeError: If x does not have dim channels, or mask or depth do not fit it.
            ConfigError: If depth is out of range.
        """
        flat, shape = self._flatten(x, "forward")
        real = checks.real_rows(mask, shape, self._name("forward"))
        depths = depths_to_use(self, shape, depth, generator, x.device)
        own_depth = depths if depth is None or isinstance(depth, Tensor) else depth
        with torch.autocast(x.device.type, enabled=False):
            outs = [
                part(piece, real, depth=own_depth, generator=generator)
                for part, piece in zip(self._quantizers(), self._cut(flat), strict=True)
            ]
            quantized = self._turned_back(torch.cat([out.quantized for out in outs], dim=1))
        codes = _interleave([out.codes for out in outs])
        return QuantizerOutput(
            quantized=self._restore(quantized, shape).to(x.dtype),
            codes=codes.reshape(*shape, codes.shape[1]),
            commitment_loss=torch.stack([out.commitment_loss for out in outs]).mean(),
            codebook_loss=torch.stack([out.codebook_loss for out in outs]).mean(),
            stats=self._joint_stats(codes, [out.stats for out in outs]),
            depths=None if depths is None else depths.reshape(shape),
        )

    @torch.no_grad()
    def encode(
        self, x: Tensor, *, beam: int | None = None, depth: int | None = None, **settings: Any
    ) -> Tensor:
        """Encode vectors as stacks of codes, group by group.

        Args:
            x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first; finite.
            beam: Prefixes kept in each group; the beam that was fitted for when None.
            depth: Levels to encode; all when None.
            settings: As for `ResidualQuantizer.encode`, with its errors.

        Returns:
            Codes, shape (..., depth · groups), int64, level after level.
        """
        flat, shape, beam, depth = self._to_encode(x, beam, depth)
        rows = flat.shape[0]  # len() would fix it in exported programs
        codes = torch.empty(rows, depth * self.groups, dtype=torch.int64, device=flat.device)
        budget = settings.get("max_bytes", DEFAULT_MAX_BYTES) // _TURNED_SHARE
        for chunk in chunk_slices(rows, 8 * self.dim, budget):
            codes[chunk] = _interleave(
                [
                    part.encode(piece, beam=beam, depth=depth, **settings)
                    for part, piece in zip(self._quantizers(), self._cut(flat[chunk]), strict=True)
                ]
            )
        return codes.reshape(*shape, codes.shape[1])

    @torch.no_grad()
    def fit(
        self,
        X: NDArray | Tensor,
        *,
        beam: int = 5,
        max_rows: int | None = None,
        warm_start: bool = False,
        target_bits: float | None = None,
        time_budget: float | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        **settings: Any,
    ) -> "GroupedResidualQuantizer":
        """Train offline on a matrix: find the rotation, then fit group after group.

        Args:
            X: Vectors, shape (N, dim), as for `ResidualQuantizer.fit`.
            beam: Prefixes kept per group, also in `encode` from then on.
            max_rows: Rows used, drawn at random; 1024 per codeword when None.
            warm_start: Go on from the quantizer's own rotation and tables.
            target_bits: Bits per vector to reach, entropy-coded, shared out evenly.
            time_budget: Seconds, shared out evenly, after which no further round begins.
            seed: Fixes the result.
            progress: Told of each group's steps.
            settings: As for `ResidualQuantizer.fit`, with its errors.

        Returns:
            The quantizer itself, fitted.
        """
        if self.frozen:
            raise ConfigError(f"{self._name('fit')}: the quantizer is frozen. Make a new one.")
        largest = max(self.codebook_sizes)
        x = checks.training_rows(
            self._name("fit"),
            X,
            self.dim,
            min_rows=largest,
            max_rows=1024 * largest if max_rows is None else max_rows,
            seed=seed,
        ).to(self.axes.device)
        if target_bits is not None:
            settings["target_bits"] = target_bits / self.groups
        if time_budget is not None:
            settings["time_budget"] = time_budget / self.groups
        settings |= {"beam": beam, "max_rows": len(x)}
        if self.rotation is not None and not warm_start:
            self.axes.copy_(self._find_rotation(x, seed))
        for group, (part, piece) in enumerate(zip(self._quantizers(), self._cut(x), strict=True)):
            part.fit(
                piece.contiguous(),
                warm_start=warm_start,
                seed=seed + group,
                progress=_named(progress, f"group {group + 1} of {self.groups}: "),
                **settings,
            )
        return self

    to_faiss = faiss_bridge.to_faiss

    def _codewords(self) -> list[Tensor]:
        """Return what each code may add to a vector, (K, dim) each."""
        size = self.dim // self.groups
        padded = [
            [F.pad(table, (group * size, self.dim - (group + 1) * size)) for table in part_tables]
            for group, part_tables in enumerate(part._codewords() for part in self._quantizers())
        ]
        return [self._turned_back(table) for level in zip(*padded, strict=True) for table in level]

    def _find_rotation(self, x: Tensor, seed: int) -> Tensor:
        if self.rotation == "random":
            return random_rotation(self.dim, torch.Generator().manual_seed(seed)).to(x)
        axes = balanced_rotation(x, self.groups).to(x)
        if self.rotation == "pca":
            return axes
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        sample = x[rows[:_TURN_ROWS].to(x.device)]
        cheap: dict[str, Any] = {"iterations": 4, "starts": 1, "rounds": 0, "beam": 1}
        with torch.random.fork_rng(devices=[]):
            trial = GroupedResidualQuantizer(
                self.dim, self.depth, self.codebook_size, groups=self.groups
            ).to(x.device)
        for turn in range(_TURNS):
            turned = sample @ axes.T
            trial.fit(turned, seed=seed + turn, max_rows=len(sample), **cheap)
            axes = procrustes(sample, trial._sum(trial.encode(turned)))
        return axes

    def _quantizers(self) -> list[ResidualQuantizer]:
        return list(self.parts)  # type: ignore[arg-type]  # a ModuleList forgets what it holds

    def _cut(self, flat: Tensor) -> Sequence[Tensor]:
        """Turn vectors (N, dim) and return the part of each group."""
        turned = flat @ self.axes.T if self.axes.numel() else flat
        return turned.split(self.dim // self.groups, dim=1)

    def _joint_stats(self, codes: Tensor, own: Sequence[CodeStats]) -> CodeStats:
        """Return the statistics of whole vectors, from those of each group."""
        errors = torch.stack([stats.errors for stats in own if stats.errors is not None]).sum(dim=0)
        dead = [stats.dead_entries for stats in own if stats.dead_entries is not None]
        joint = torch.stack(dead, dim=1).flatten() if dead else None  # in the codes' order
        return CodeStats(codes, self.codebook_sizes, errors, joint)

    def _turned_back(self, vectors: Tensor) -> Tensor:
        return vectors @ self.axes if self.axes.numel() else vectors

    def _sum(self, codes: Tensor) -> Tensor:
        sums = []
        for group, part in enumerate(self._quantizers()):
            own = codes[:, group :: self.groups]
            blank = codes.new_zeros(codes.shape[0], part.dim, dtype=torch.float32)
            sums.append(part._sum(own) if own.shape[1] else blank)
        return self._turned_back(torch.cat(sums, dim=1))

    def _stored(self) -> dict[str, Tensor]:
        tensors = {
            f"{group}.{name}": tensor
            for group, part in enumerate(self._quantizers())
            for name, tensor in part._stored().items()
        }
        return tensors | ({"axes": self.axes} if self.axes.numel() else {})

    def _adopt(self, path: str | Path, tensors: Mapping[str, Tensor]) -> None:
        by_group: list[dict[str, Tensor]] = [{} for _ in self.parts]
        rest = {}
        for name, tensor in tensors.items():
            group, _, own = name.partition(".")
            if group.isdecimal() and int(group) < self.groups:
                by_group[int(group)][own] = tensor
            else:
                rest[name] = tensor
        check_tensors(path, {"axes": self.axes} if self.axes.numel() else {}, rest)
        for part, own_tensors in zip(self._quantizers(), by_group, strict=True):
            part._adopt(path, own_tensors)
        if self.axes.numel():
            self.axes.copy_(rest["axes"])

    def _settings(self) -> dict[str, object]:
        return super()._settings() | self.online

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow the parent to another device, never to another precision."""
        exact = self.axes
        super()._apply(fn, recurse)
        if self.axes.dtype != torch.float32 and not self.axes.is_meta:
            self.axes = exact.to(device=self.axes.device)
        return self


def _interleave(codes: Sequence[Tensor]) -> Tensor:
    """Order the groups' codes (N, depth) level after level: (N, depth · groups)."""
    return torch.stack(list(codes), dim=2).flatten(1)


def _named(progress: Progress | None, name: str) -> Progress | None:
    """Put a name before what the progress is told."""
    if progress is None:
        return None
    return lambda step, done, total: progress(name + step, done, total)
