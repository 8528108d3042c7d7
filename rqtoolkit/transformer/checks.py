"""What may go wrong at the public edge of the transformer, each as one clear sentence.

Checks of values wait for the device once; under `torch.compile` they are left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import check_count

__all__ = [
    "check_codes",
    "check_condition",
    "check_integers",
    "check_lengths",
    "check_positions",
    "check_range",
    "check_targets",
]


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


def check_condition(
    where: str, cond: Tensor | None, *, num_classes: int | None, batch: int
) -> Tensor | None:
    """Return class labels (batch, 1), int64, or None for a model without classes."""
    if num_classes is None:
        if cond is not None:
            raise ConfigError(
                f"{where}: cond was given but the model is unconditional (num_classes=None). "
                "Leave cond out, or build the model with num_classes."
            )
        return None
    if cond is None:
        raise ConfigError(
            f"{where}: cond is missing and the model has num_classes={num_classes}. "
            f"Pass class labels of shape ({batch},)."
        )
    check_integers(where, "cond", cond)
    if cond.shape not in {(batch,), (batch, 1)}:
        raise ShapeError(
            f"{where}: cond must have shape ({batch},) or ({batch}, 1); "
            f"got shape {tuple(cond.shape)}."
        )
    cond = cond.long().view(batch, 1)
    if not torch.compiler.is_compiling() and ((cond < 0) | (cond >= num_classes)).any():
        raise DataError(
            f"{where}: cond must lie in 0 to {num_classes - 1}; "
            f"got {int(cond.min())} to {int(cond.max())}."
        )
    return cond


def check_targets(where: str, targets: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse soft targets of another shape or of integers; that they sum to one is not checked."""
    if tuple(targets.shape) != shape:
        raise ShapeError(
            f"{where}: targets must have shape {shape}, probabilities over the codes of each "
            f"level; got shape {tuple(targets.shape)}."
        )
    if not targets.is_floating_point():
        raise DataError(
            f"{where}: targets must be floating-point probabilities; got {targets.dtype}. "
            "Leave targets out to train on the codes themselves."
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
