"""Train the quantizer behind semantic IDs on standardised embeddings."""

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count, check_sizes, shown
from rqtoolkit.functional.progress import Progress
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids.balance import balanced_fit, check_balance
from rqtoolkit.semantic_ids.inputs import Embeddings
from rqtoolkit.semantic_ids.standardize import Standardization

__all__ = ["METHODS", "fit_quantizer", "refit_quantizer"]

METHODS = {
    "residual": "rqtoolkit.quantizers.residual.ResidualQuantizer",
    "rqvae": "rqtoolkit.quantizers.autoencoder.ResidualAutoencoder",
    "neural": "rqtoolkit.quantizers.neural.NeuralResidualQuantizer",
}
_NUMBERS = {int: Integral, float: Real, bool: bool, NoneType: NoneType}
_ROWS_PER_CODE = {"residual": 1024, "rqvae": 4096, "neural": 4096}


def fit_quantizer(
    where: str,
    embeddings: Embeddings,
    ranks: NDArray[np.int64],
    *,
    method: str = "residual",
    depth: int = 3,
    codebook_size: int | Sequence[int] = 256,
    balance: float | None = None,
    scale_columns: bool = False,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Quantizer, Standardization]:
    """Fit a standardisation and a quantizer, which no order of rows changes.

    Args:
        where: Method, for messages.
        embeddings: The items' vectors.
        ranks: Place of each row among the sorted item ids.
        method: A key of `METHODS`.
        depth: Residual levels.
        codebook_size: Entries of each level, or one number a level; no level gets more entries
            than there are items.
        balance: Items of a first-level code, at most, in units of the even share.
        scale_columns: Scale each column by itself.
        settings: Arguments of the quantizer and of its `fit`.
        seed: Fixes the result.
        progress: Told of each stretch of work.

    Raises:
        ConfigError: If a method or setting is unknown, or a number out of range.
    """
    sizes = check_sizes(where, codebook_size, check_count(where, "depth", depth))
    if method not in METHODS:
        raise ConfigError(
            f"{where}: method={method!r} is unknown. Choose one of {', '.join(METHODS)}."
        )
    kind = _import(METHODS[method])
    made, trained = _split_settings(where, kind, settings or {})
    if balance is not None:
        check_balance(where, kind, balance, trained)
    sizes = _shrunk(where, sizes, len(embeddings))
    limit = trained.get("max_rows") or _ROWS_PER_CODE[method] * max(sizes)
    x = embeddings.take(_training_rows(ranks, check_count(where, "max_rows", limit), seed))
    standardization = Standardization.fit(x, scale_columns=scale_columns)
    x = standardization.apply(x)
    with torch.random.fork_rng(devices=[]):  # the seed is the only source of chance
        torch.manual_seed(seed)
        quantizer = kind(x.shape[1], depth, list(sizes), **made)
        _train(quantizer, x, balance, seed=seed, progress=progress, **trained)
    return quantizer.eval(), standardization


def refit_quantizer(
    where: str,
    embeddings: Embeddings,
    ranks: NDArray[np.int64],
    quantizer: Quantizer,
    standardization: Standardization,
    *,
    balance: float | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Quantizer, Standardization]:
    """Go on training a copy of a quantizer, in the units it has; else as `fit_quantizer`."""
    kind: Any = type(quantizer)
    if "warm_start" not in inspect.signature(kind.fit).parameters:
        raise ConfigError(
            f"{where}: warm_start=True goes on from tables, which {kind.__name__} cannot. "
            "Pass warm_start=False (--no-warm-start)."
        )
    _, trained = _split_settings(where, kind, settings or {})
    limit = trained.get("max_rows") or _ROWS_PER_CODE["residual"] * max(quantizer.codebook_sizes)
    x = embeddings.take(_training_rows(ranks, check_count(where, "max_rows", limit), seed))
    refitted: Any = copy.deepcopy(quantizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = standardization.apply(x)
        _train(refitted, x, balance, warm_start=True, seed=seed, progress=progress, **trained)
    return refitted.eval(), standardization


def _train(quantizer: Any, x: NDArray[np.float32], balance: float | None, **settings: Any) -> None:
    if balance is None:
        quantizer.fit(x, **settings)
    else:
        balanced_fit(quantizer, x, balance, **settings)


def _import(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)


def _shrunk(where: str, sizes: tuple[int, ...], items: int) -> tuple[int, ...]:
    if max(sizes) <= items:
        return sizes
    warnings.warn(
        f"{where}: codebook_size={max(sizes)} exceeds the number of items; got {items} items. "
        f"No level gets more than {items} entries.",
        UserWarning,
        stacklevel=4,
    )
    return tuple(min(size, items) for size in sizes)


def _training_rows(ranks: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """Return at most `limit` rows, drawn and ordered by the items' ids alone."""
    rows = np.argsort(ranks)
    if len(rows) > limit:
        drawn = np.random.default_rng(seed).choice(len(rows), limit, replace=False)
        rows = rows[np.sort(drawn)]
    return rows


def _split_settings(
    where: str, kind: Any, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell arguments of the quantizer from those of its `fit`, and refuse what is neither."""
    fixed = {"dim", "depth", "codebook_size", "channels_first"}
    own = {"self", "X", "seed", "progress", "warm_start"}
    made = [name for name in kind.arguments if name not in fixed]
    trained = [name for name in inspect.signature(kind.fit).parameters if name not in own]
    for name in settings:
        if name not in made and name not in trained:
            near = get_close_matches(name, [*made, *trained], n=1)
            raise ConfigError(
                f"{where}: settings has no {name!r} for {kind.__name__}. "
                + (f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(trained)}.")
            )
    taken = {**inspect.signature(kind).parameters, **inspect.signature(kind.fit).parameters}
    for name, value in settings.items():
        _check_number(where, name, value, taken[name].annotation)
    # `fit` comes first: it sets some attributes, such as the beam, whatever the constructor had.
    return (
        {name: value for name, value in settings.items() if name not in trained},
        {name: value for name, value in settings.items() if name in trained},
    )


def _check_number(where: str, name: str, value: Any, expected: Any) -> None:
    """Refuse what is no number where a setting takes numbers alone."""
    kinds = get_args(expected) if isinstance(expected, UnionType) else (expected,)
    if not all(kind in _NUMBERS for kind in kinds):
        return
    fits = isinstance(value, tuple(_NUMBERS[kind] for kind in kinds))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(
            f"{where}: settings has {name}={shown(value)}; got {type(value).__name__} in place of "
            f"{' or '.join('None' if kind is NoneType else kind.__name__ for kind in kinds)}."
        )
