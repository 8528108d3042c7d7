"""What quantizers accept: sizes, codes and training data, with the errors for the rest."""

from collections.abc import Sequence
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import (
    LARGEST_VALUE,
    check_count,
    check_rate,
    check_sizes,
    shown,
)

__all__ = [
    "channels_last",
    "check_codes",
    "check_depth",
    "check_finite",
    "check_fit",
    "check_plain",
    "check_settings",
    "check_vectors",
    "given_tables",
    "level_sizes",
    "real_rows",
    "temperature",
    "training_rows",
]


_SMALLEST = 1e-18  # float32 does not hold squares of smaller values


def level_sizes(
    where: str,
    dim: int,
    depth: int,
    codebook_size: int | Sequence[int],
    *,
    shared_codebook: bool = False,
) -> tuple[int, ...]:
    """Return the codebook size of each level.

    Raises:
        ConfigError: If a number is not a positive integer, the sizes are not one per level, or a
            shared codebook is asked to have several sizes.
    """
    check_count(where, "dim", dim)
    sizes = check_sizes(where, codebook_size, check_count(where, "depth", depth))
    if shared_codebook and len(set(sizes)) > 1:
        raise ConfigError(
            f"{where}: codebook_size={shown(codebook_size)} differs over levels, which one shared "
            "codebook cannot. Pass one number, or shared_codebook=False."
        )
    return sizes


def check_settings(
    *,
    update: str,
    decay: float | None,
    restart_threshold: float,
    estimator: str,
    similarity: str,
    codebook_dim: int | None,
    depth_dropout: float,
    tau: float,
    forward_beam: int,
    beam: int,
) -> None:
    """Refuse training settings of `ResidualQuantizer` out of their range, or at odds.

    Raises:
        ConfigError: If there is one.
    """
    where = "ResidualQuantizer"
    choices = {
        "update": (update, ("ema", "gradient", "paper")),
        "estimator": (estimator, ("straight_through", "rotation")),
        "similarity": (similarity, ("euclidean", "cosine")),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            names = ", ".join(repr(one) for one in known)
            raise ConfigError(f"{where}: {name}={value!r} is unknown. Choose one of {names}.")
    if decay is not None:
        check_rate(where, "decay", decay)
    check_rate(where, "restart_threshold", restart_threshold)
    check_count(where, "beam", beam)
    check_count(where, "forward_beam", forward_beam)
    if codebook_dim is not None:
        check_count(where, "codebook_dim", codebook_dim)
    if not 0 <= depth_dropout <= 1:
        raise ConfigError(f"{where}: depth_dropout={depth_dropout} has to be in [0, 1].")
    if not 0 <= tau < inf:
        raise ConfigError(f"{where}: tau={tau} has to be at least 0 and finite.")
    if tau and forward_beam > 1:
        raise ConfigError(
            f"{where}: tau={tau} draws codes, forward_beam={forward_beam} searches for the best. "
            "Leave one of them out."
        )
    if similarity == "cosine" and forward_beam > 1:
        raise ConfigError(
            f"{where}: forward_beam={forward_beam} searches for the least squared error, "
            "similarity='cosine' chooses by direction. Leave one of them out."
        )
    others = (similarity, codebook_dim, tau, forward_beam)
    if update == "paper" and others != ("euclidean", None, 0, 1):
        raise ConfigError(
            f"{where}: update='paper' goes with similarity='euclidean', codebook_dim=None, tau=0 "
            f"and forward_beam=1; got {similarity!r}, {codebook_dim}, {tau} and {forward_beam}. "
            "Choose update='ema' for the others."
        )


def check_plain(where: str, similarity: str, codebook_dim: int | None) -> None:
    """Refuse a quantizer whose levels do not choose the codeword nearest to the vector itself.

    Raises:
        ConfigError: If it is one.
    """
    if (similarity, codebook_dim) != ("euclidean", None):
        raise ConfigError(
            f"{where}: goes by distances between vectors and codewords, by which this quantizer "
            f"does not choose; got similarity={similarity!r} and codebook_dim={codebook_dim}. "
            "Train it in a network, or make one with similarity='euclidean' and codebook_dim=None."
        )


def check_depth(where: str, depth: int, most: int) -> int:
    """Return a number of levels from 1 to those that there are.

    Raises:
        ConfigError: If it is another.
    """
    if check_count(where, "depth", depth) > most:
        raise ConfigError(f"{where}: depth={depth} exceeds the quantizer's {most}.")
    return int(depth)


def real_rows(mask: Tensor | None, shape: torch.Size, where: str) -> Tensor | None:
    """Return a mask (...) of vectors as (N,), or None.

    Raises:
        DataError: If it is no boolean tensor.
        ShapeError: If its shape is not that of the codes without their last axis.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise DataError(
            f"{where}: mask has to be a boolean tensor, True for vectors; got {kind}. "
            "Pass mask.bool()."
        )
    if mask.shape != shape:
        raise ShapeError(
            f"{where}: mask has to have shape {tuple(shape)}; got {tuple(mask.shape)}."
        )
    return mask.reshape(-1)


def given_tables(
    where: str, tables: Tensor | NDArray, like: Tensor, codebook_sizes: Sequence[int]
) -> Tensor:
    """Return given tables as a tensor like those of the quantizer, with 0 beyond a table's size.

    Raises:
        ShapeError: If the shape is another.
        DataError: If a value is not finite.
    """
    tables = torch.as_tensor(tables)
    if tables.shape != like.shape:
        raise ShapeError(
            f"{where}: codebooks has to have shape {tuple(like.shape)}; got {tuple(tables.shape)}."
        )
    tables = tables.detach().to(like.device, torch.float32)
    padding = torch.arange(like.shape[1]) >= torch.tensor(codebook_sizes)[:, None]
    tables = tables.masked_fill(padding[..., None].to(like.device), 0)
    check_finite(tables.flatten(0, 1), where)
    return tables


def check_fit(
    frozen: bool,
    *,
    iterations: int,
    starts: int,
    beam: int,
    rounds: int,
    prefix_weight: float = 0.0,
    rate_weight: float | None = None,
    target_bits: float | None = None,
    most_bits: float = inf,
    time_budget: float | None = None,
) -> None:
    """Refuse a frozen quantizer, and numbers with which `fit` cannot work.

    Raises:
        ConfigError: If there is one.
    """
    if frozen:
        raise ConfigError("ResidualQuantizer.fit: the quantizer is frozen. Make a new one.")
    if min(iterations, starts, beam, rounds + 1) < 1:
        raise ConfigError(
            "ResidualQuantizer.fit: iterations, starts and beam have to be at least 1 and "
            f"rounds at least 0; got {iterations}, {starts}, {beam} and {rounds}."
        )
    if not prefix_weight >= 0:
        raise ConfigError(
            f"ResidualQuantizer.fit: prefix_weight={prefix_weight} has to be at least 0."
        )
    if rate_weight is not None and target_bits is not None:
        raise ConfigError(
            f"ResidualQuantizer.fit: rate_weight={rate_weight} and target_bits={target_bits} ask "
            "for the same thing in two ways. Give one of them."
        )
    if target_bits is not None and target_bits > most_bits:
        raise ConfigError(
            f"ResidualQuantizer.fit: target_bits={target_bits} exceeds what the codes take without "
            f"entropy coding; got codebooks of {most_bits:g} bits. Ask for fewer, or leave it out."
        )
    limits = {"rate_weight": rate_weight, "target_bits": target_bits, "time_budget": time_budget}
    for name, value in limits.items():
        if value is not None and not 0 < value < inf:
            raise ConfigError(
                f"ResidualQuantizer.fit: {name}={value} has to be above 0 and finite, or None."
            )


def temperature(where: str, tau: float, tables: Sequence[Tensor], *, relative: bool) -> float:
    """Return tau in the units of a squared distance.

    Args:
        where: Class and method, for the message.
        tau: Temperature.
        tables: Codewords of each level, (K_d, dim).
        relative: Whether tau is in units of their mean squared norm.

    Raises:
        ConfigError: If tau is not above 0.
    """
    if not tau > 0:
        raise ConfigError(f"{where}: tau={tau} has to be above 0.")
    if not relative:
        return tau
    norm = float(torch.cat(list(tables)).square().sum(dim=1).mean())
    return tau * max(norm, torch.finfo(torch.float32).tiny)


def channels_last(x: Tensor, where: str, dim: int, *, channels_first: bool) -> Tensor:
    """Return vectors with their channels on the last axis.

    Raises:
        DataError: If x is no floating-point tensor.
        ShapeError: If it does not have dim channels.
    """
    check_vectors(x, where)
    axis = 1 if channels_first else -1
    if x.ndim < 1 + channels_first or x.shape[axis] != dim:
        layout = "(B, dim, ...)" if channels_first else "(..., dim)"
        raise ShapeError(
            f"{where}: x has to have shape {layout} with dim={dim}; got shape {tuple(x.shape)}."
        )
    return x.movedim(axis, -1)


def check_vectors(x: object, where: str) -> None:
    """Refuse anything but a floating-point tensor.

    Raises:
        DataError: If it is another type, or holds integers, booleans or complex numbers.
    """
    if not isinstance(x, Tensor):
        raise DataError(
            f"{where}: x has to be a torch tensor; got {type(x).__name__}. Pass torch.as_tensor(x)."
        )
    if not x.is_floating_point():
        raise DataError(f"{where}: x has to be floating point; got {x.dtype}. Pass x.float().")


def check_finite(x: Tensor, where: str, rows: Tensor | None = None) -> None:
    """Refuse vectors (N, dim) with NaN, infinite or huge values, naming the first.

    Args:
        x: Vectors.
        where: Class and method, for the message.
        rows: What row of the user's data each is, where they were drawn from it.

    Raises:
        DataError: If there are any.
    """
    low, high = x.aminmax(dim=1)  # no copy of x
    bad = ~((low >= -LARGEST_VALUE) & (high <= LARGEST_VALUE))  # nor is NaN
    if bool(bad.any()):
        first = int(bad.int().argmax())
        row = first if rows is None else int(rows[first])
        raise DataError(
            f"{where}: vectors have to be finite and within ±{LARGEST_VALUE:g}; got "
            f"NaN, infinity or more in {int(bad.sum())} of {len(x)} rows, first in row {row}. "
            "Remove, mend or scale them."
        )


def check_codes(codes: Tensor, codebook_sizes: Sequence[int], where: str) -> Tensor:
    """Return codes (..., d) as (N, d) int64.

    Raises:
        ShapeError: If d is 0 or more than there are levels.
        DataError: If the codes are not integers, or out of range.
    """
    if not isinstance(codes, Tensor):
        raise DataError(
            f"{where}: codes have to be a torch tensor of integers; "
            f"got {type(codes).__name__}. Pass torch.as_tensor(codes)."
        )
    depth = len(codebook_sizes)
    given = codes.shape[-1] if codes.ndim else 0
    if not 1 <= given <= depth:
        raise ShapeError(
            f"{where}: codes has depth {given} but the quantizer has depth "
            f"{depth}; got shape {tuple(codes.shape)}. Pass codes[..., :{depth}], or load the "
            "matching file."
        )
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise DataError(f"{where}: codes have to be integers; got {codes.dtype}.")
    flat = codes.reshape(-1, given).long()
    if not torch.compiler.is_compiling():
        sizes = torch.tensor(codebook_sizes[:given], device=flat.device)
        if bool(((flat < 0) | (flat >= sizes)).any()):
            lowest = int(flat.min())
            padding = " Codes of -1 are padding: pass codes[mask]." if lowest == -1 else ""
            raise DataError(
                f"{where}: codes have to be in [0, codebook_size) with "
                f"codebook_sizes={tuple(codebook_sizes)}; got codes from {lowest} to "
                f"{int(flat.max())}.{padding or ' Load the quantizer that made them.'}"
            )
    return flat


def training_rows(
    where: str, X: NDArray | Tensor, dim: int, *, min_rows: int, max_rows: int, seed: int
) -> Tensor:
    """Return at most max_rows rows of X, drawn at random, as finite float32.

    Raises:
        ShapeError: If X is not (N, dim).
        DataError: If X is not numeric, not finite, of values too small to square, or has fewer than
            min_rows rows to offer.
    """
    if not isinstance(X, Tensor | np.ndarray):
        raise DataError(
            f"{where}: X has to be a numpy array or torch tensor; "
            f"got {type(X).__name__}. Pass np.asarray(X)."
        )
    if X.ndim != 2 or X.shape[1] != dim:
        raise ShapeError(f"{where}: X has to have shape (N, {dim}); got {tuple(X.shape)}.")
    numeric = X.dtype.kind in "fiu" if isinstance(X, np.ndarray) else not X.is_complex()
    if not numeric:
        raise DataError(f"{where}: X has to be numeric; got dtype {X.dtype}.")
    count = min(len(X), max_rows)
    if count < min_rows:
        raise DataError(
            f"{where}: codebook_size={min_rows} needs at least as many vectors; "
            f"got {count}. Give more vectors or a smaller codebook_size."
        )
    rows = None
    if len(X) > max_rows:
        generator = torch.Generator().manual_seed(seed % 2**63)
        rows = torch.randperm(len(X), generator=generator)[:max_rows].sort().values
        X = X[rows.numpy()] if isinstance(X, np.ndarray) else X[rows.to(X.device)]
    if isinstance(X, np.ndarray):
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            X = torch.from_numpy(np.require(X, np.float32, ["C", "W"]))
    check_finite(X, where, rows)
    largest = max(abs(float(value)) for value in X.aminmax())
    if 0 < largest < _SMALLEST:
        raise DataError(
            f"{where}: the largest value of X is {largest:.3g}, too small for float32 to hold its "
            f"square; got nothing of {_SMALLEST:g} or more. Multiply X by a power of two."
        )
    return X.float()
