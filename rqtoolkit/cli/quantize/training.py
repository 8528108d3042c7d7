"""Fit quantizers of every method: what each can be told, and the rows it is fitted on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.cli.console import message
from rqtoolkit.cli.quantize.streams import check_dim
from rqtoolkit.errors import ConfigError, DataError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.vectors import VectorTable
from rqtoolkit.quantizers import (
    GroupedResidualQuantizer,
    NeuralResidualQuantizer,
    Quantizer,
    ResidualAutoencoder,
    ResidualQuantizer,
    load_quantizer,
)

__all__ = ["check_options", "fit_quantizer", "load_start", "options_used", "training_rows"]

# As the library.
_TRAIN_ROWS_PER_CODE = {"residual": 1024, "grouped": 1024, "rqvae": 4096, "neural": 4096}
_TRAIN_ELEMENTS = 2**30  # 4 GiB of float32

_RESIDUAL_FIT = (
    "rounds",
    "starts",
    "beam",
    "prefix_weight",
    "rate_weight",
    "target_bits",
    "time_budget",
)
_KINDS: dict[str, Any] = {
    "residual": ResidualQuantizer,
    "grouped": GroupedResidualQuantizer,
    "rqvae": ResidualAutoencoder,
    "neural": NeuralResidualQuantizer,
}
_CONSTRUCTOR: dict[str, tuple[str, ...]] = {
    "residual": ("shared_codebook",),
    "grouped": ("shared_codebook", "groups", "rotation"),
    "rqvae": ("beam",),
    "neural": (),
}
_SHAPE = ("method", "depth", "codebook_size", *_CONSTRUCTOR["grouped"])
_FIT: dict[str, tuple[str, ...]] = {
    "residual": _RESIDUAL_FIT,
    "grouped": _RESIDUAL_FIT,
    "rqvae": ("epochs", "time_budget"),
    "neural": ("beam", "epochs", "time_budget"),
}


def check_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, if the method takes them.

    Args:
        method: "residual", "grouped", "rqvae" or "neural".
        options: Arguments of its constructor and `fit`; None and False are left out.

    Raises:
        ConfigError: If an option is for other methods.
    """
    given = {name: value for name, value in options.items() if _is_given(value)}
    for name in given:
        takers = [kind for kind in _KINDS if name in _CONSTRUCTOR[kind] + _FIT[kind]]
        if method not in takers:
            raise ConfigError(
                f"{_flag(name)} is for --method {' or '.join(takers)}; got {method}. Leave it out."
            )
    return given


def options_used(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a fit with the library's values where none were given."""
    # Grouped quantizers hand on what those of their groups know.
    kinds = (ResidualQuantizer, _KINDS[method])
    defaults = {
        name: one.default
        for kind in kinds
        for function in (kind.__init__, kind.fit)
        for name, one in _parameters(function)
    }
    names = ("beam", *_FIT[method])
    return {"method": method, **{name: defaults[name] for name in names}, **options}


def training_rows(
    vectors: VectorTable,
    codebook_size: int,
    train_rows: int | None,
    *,
    method: str,
    seed: int,
) -> NDArray[np.float32]:
    """Read the vectors to fit on: `train_rows`, or as many a codeword as the library takes.

    That is 1024, or 4096 where networks learn, within 4 GiB.

    Args:
        vectors: Where they lie.
        codebook_size: Entries of the largest level.
        train_rows: Rows to draw; None for the default.
        method: As for `check_options`.
        seed: Fixes the draw.

    Raises:
        DataError: If a value is NaN, infinite, or beyond ±1e15.
    """
    if min(vectors.rows, train_rows or vectors.rows) < codebook_size:
        raise DataError(
            f"{vectors.path} offers {min(vectors.rows, train_rows or vectors.rows)} vectors to fit "
            f"on, fewer than the {codebook_size} codes of a level. Choose smaller codebooks."
        )
    if train_rows is None:
        rows = _TRAIN_ROWS_PER_CODE[method] * codebook_size
        train_rows = min(rows, _TRAIN_ELEMENTS // vectors.dim)
        if train_rows < vectors.rows:
            message(
                f"Fitting on {train_rows} of {vectors.rows} vectors; --train-rows sets how many"
            )
    return vectors.sample(train_rows, seed=seed)


def fit_quantizer(
    x: NDArray[np.float32],
    depth: int,
    codebook_size: int | Sequence[int],
    *,
    method: str,
    options: Mapping[str, Any],
    seed: int,
    device: str = "cpu",
    progress: Progress,
) -> Quantizer:
    """Return a new quantizer fitted on all rows of x, shape (N, dim).

    Args:
        x: Vectors.
        depth: Levels.
        codebook_size: Entries of each, or one number per level.
        method: As for `check_options`.
        options: What that returned.
        seed: Fixes the result.
        device: Where to compute.
        progress: Told of the fit.

    Raises:
        ConfigError: If an option is out of range, or `groups` is missing.
    """
    if method == "grouped" and "groups" not in options:
        raise ConfigError("--method grouped needs --groups: the parts to cut each vector into.")
    own = {name: value for name, value in options.items() if name in _CONSTRUCTOR[method]}
    quantizer = _KINDS[method](x.shape[1], depth, codebook_size, **own).to(device)
    rest = {name: value for name, value in options.items() if name not in own}
    return quantizer.fit(x, **rest, max_rows=len(x), seed=seed, progress=progress)


def load_start(
    path: Path, vectors: VectorTable, options: Mapping[str, Any], *, device: str = "cpu"
) -> tuple[Any, str, dict[str, Any]]:
    """Read a quantizer to go on from.

    Args:
        path: Its file.
        vectors: What it will be fitted on.
        options: As for `check_options`.
        device: Where to compute.

    Returns:
        The quantizer, its method, and the options that were given.

    Raises:
        ConfigError: If an option is not for its kind, or says what the file already says; or if
            that kind cannot go on.
        ShapeError: If the vectors have another dimension.
    """
    quantizer = load_quantizer(path, device=device)
    if not isinstance(quantizer, ResidualQuantizer | GroupedResidualQuantizer):
        raise ConfigError(
            f"--warm-start={path} holds a {type(quantizer).__name__}, which starts afresh. "
            "Leave it out."
        )
    method = next(name for name, kind in _KINDS.items() if isinstance(quantizer, kind))
    for name in _SHAPE:
        if _is_given(options.get(name)):
            raise ConfigError(
                f"{_flag(name)} is settled by --warm-start={path}. Leave it out, or start afresh."
            )
    check_dim(quantizer, vectors)
    given = {name: value for name, value in options.items() if name not in _SHAPE}
    return quantizer, method, check_options(method, given)


def _is_given(value: Any) -> bool:
    return value is not None and value is not False  # 0 is given


def _parameters(method: Callable[..., Any]) -> Iterable[tuple[str, Parameter]]:
    return signature(method).parameters.items()


def _flag(name: str) -> str:
    return "--lsq-rounds" if name == "rounds" else f"--{name.replace('_', '-')}"
