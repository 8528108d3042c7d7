"""What may go wrong at the public edge of the transformer, each as one clear sentence.

Checks of values wait for the device once; under `torch.compile` they are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.functional.soft_targets import SoftTargets

if TYPE_CHECKING:
    from rqtoolkit.transformer.model import RQTransformer

__all__ = [
    "check_codes",
    "check_generator",
    "check_inputs",
    "check_integers",
    "check_lengths",
    "check_positions",
    "check_range",
    "check_targets",
]


def check_inputs(
    model: RQTransformer, where: str, codes: Tensor, cond: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check what a model is fed.

    Returns:
        Codes (B, T, depth), 0 in padding; rows (B, n) of the condition table; and which positions
        are real (B, T), or None without lengths.
    """
    check_codes(where, codes, positions=model.positions, sizes=model.codebook_sizes)
    batch = codes.shape[0]
    codes = codes.long().flatten(1, -2)
    real = None
    if lengths is not None:
        axes, longest = len(model.positions), codes.shape[1]
        lengths = check_lengths(where, lengths, axes=axes, batch=batch, longest=longest)
        real = torch.arange(longest, device=codes.device) < lengths.unsqueeze(1)
        codes = codes.masked_fill(~real.unsqueeze(-1), 0)
    check_range(where, codes, model.codebook_sizes)
    return codes, model.condition.rows(where, cond, batch), real


def check_positions(where: str, positions: int | Sequence[int]) -> tuple[int, ...]:
    """Return the axes of the grid; one axis for a sequence."""
    axes = list(positions) if isinstance(positions, Sequence) else [positions]
    if not axes:
        raise ConfigError(f"{where}: positions=() has no axis. Pass (H, W) or a length.")
    return tuple(check_count(where, "positions", size) for size in axes)


def check_lengths(where: str, lengths: Tensor, *, axes: int, batch: int, longest: int) -> Tensor:
    """Return sequence lengths (batch,), int64, after checking that they make sense."""
    if axes != 1:
        raise ShapeError(
            f"{where}: lengths needs one-dimensional positions; got positions with {axes} axes. "
            "Leave lengths out."
        )
    check_integers(where, "lengths", lengths)
    if lengths.shape != (batch,):
        raise ShapeError(
            f"{where}: lengths must have one entry per sequence, shape ({batch},); "
            f"got shape {tuple(lengths.shape)}."
        )
    lengths = lengths.long()
    if not torch.compiler.is_compiling() and ((lengths < 1) | (lengths > longest)).any():
        raise DataError(
            f"{where}: lengths must lie in 1 to {longest}, the positions in codes; "
            f"got {int(lengths.min())} to {int(lengths.max())}."
        )
    return lengths


def check_codes(
    where: str, codes: Tensor, *, positions: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    """Refuse codes that are not integers of shape (B, *positions, depth); see `check_range`.

    One-dimensional positions are a maximum: shorter sequences pass.
    """
    check_integers(where, "codes", codes)
    grid, depth = tuple(codes.shape[1:-1]), len(sizes)
    if codes.ndim != len(positions) + 2 or codes.shape[-1] != depth:
        fits = False
    elif len(positions) == 1:
        fits = 1 <= grid[0] <= positions[0]
    else:
        fits = grid == positions
    if not fits:
        most = "at most " if len(positions) == 1 else ""
        wanted = ", ".join(map(str, ("B", *positions, depth)))
        raise ShapeError(
            f"{where}: codes must have shape ({wanted}), {most}{positions} positions and depth "
            f"last; got shape {tuple(codes.shape)}. Reshape the codes, or build the model for them."
        )
    if codes.shape[0] == 0:
        raise ShapeError(f"{where}: codes holds no sequence; got shape {tuple(codes.shape)}.")


def check_range(where: str, codes: Tensor, sizes: tuple[int, ...]) -> None:
    """Refuse codes (..., depth) that their codebook does not have."""
    if torch.compiler.is_compiling() or codes.numel() == 0:
        return
    limits = torch.tensor(sizes, device=codes.device)
    bad = (codes < 0) | (codes >= limits)
    if bad.any():
        level = int(bad.nonzero()[0, -1])
        value = int(codes[bad][0])
        raise DataError(
            f"{where}: codes of level {level} must lie in 0 to {sizes[level] - 1}; got {value}. "
            "Check that the codes come from the quantizer the model was built for."
        )


def check_targets(
    where: str, targets: Tensor | SoftTargets, shape: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    """Refuse soft targets that do not fit codes of `shape`; that they sum to one is not checked."""
    if isinstance(targets, SoftTargets):
        found = tuple(len(table) for table in targets.tables)
        if found != sizes or targets.residuals.shape[:-1] != shape:
            raise ShapeError(
                f"{where}: targets must have residuals of shape {(*shape, 'code_dim')} and tables "
                f"of sizes {sizes}; got {tuple(targets.residuals.shape)} and {found}."
            )
        return
    if tuple(targets.shape) != (*shape, max(sizes)):
        raise ShapeError(
            f"{where}: targets must have shape {(*shape, max(sizes))}, probabilities over the "
            f"codes of each level; got shape {tuple(targets.shape)}."
        )
    if not targets.is_floating_point():
        raise DataError(
            f"{where}: targets must be floating-point probabilities; got {targets.dtype}. "
            "Leave targets out to train on the codes themselves."
        )


def check_generator(where: str, generator: torch.Generator | None, device: torch.device) -> None:
    """Refuse a generator of another kind of device than the model's."""
    if generator is not None and generator.device.type != device.type:
        raise ConfigError(
            f"{where}: generator is on {generator.device} and the model on {device}. "
            f"Make it with torch.Generator({device.type!r})."
        )


def check_integers(where: str, name: str, value: Tensor) -> None:
    """Refuse anything but a tensor of integers."""
    if not isinstance(value, Tensor):
        raise DataError(
            f"{where}: {name} must be a torch tensor of integers; got {type(value).__name__}. "
            "Convert it with torch.as_tensor."
        )
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise DataError(f"{where}: {name} must hold integers; got {value.dtype}.")
