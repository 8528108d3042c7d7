"""Codes that spread over a catalogue: prices of crowded entries, learnt once and kept.

A price is added to the squared error where an entry is used (`ResidualQuantizer.penalties`), so
that items near a border go to the neighbour. New items meet the same prices, and encoding takes no
longer. Clustering with constraints instead, as a minimum-cost flow between all items and all
codes, has exact sizes, but grows faster than N · K, and tells nothing of new items.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_number
from rqtoolkit.functional.assign import sum_codewords
from rqtoolkit.functional.encoding import encode_vectors
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["balanced_fit", "check_balance", "code_prices"]

_ROWS = 2**16  # vectors that prices are learnt from
_SPREADING, _LIMITING = 20, 60  # rounds, of which the second end when all sizes are within limits
_PACE, _LIMIT_PACE = 0.01, 0.05  # of a price in a round, in mean squared errors
_HASTE = 1.1  # growth of the second: what first codes differ by may be many times the error
_RESTRAINT = 0.3  # of it after a round that goes astray
_PATIENCE = 0.02  # share of all vectors that may become too many in between
_AIM = 0.97  # of the limit, which is reached sooner then
_SLOW = 0.3  # of the first pace in the last rounds, so that prices settle
_SETTLING = 0.7  # of all rounds come before those


def balanced_fit(
    quantizer: Quantizer,
    x: NDArray | Tensor,
    balance: float,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> Quantizer:
    """Fit a quantizer, then let entries that bring collisions, and large first codes, cost more.

    Args:
        quantizer: Of kind `ResidualQuantizer`; trained in place.
        x: Vectors, shape (N, dim).
        balance: Vectors that a first code may take, in even shares N / codebook_size; from 1 on.
        seed: Fixes the result.
        progress: Told of each stretch of work.
        **settings: Further arguments of `ResidualQuantizer.fit`.

    Returns:
        The quantizer itself, fitted, with `penalties`.

    Warns:
        UserWarning: If a first code takes more than allowed still, as it does where that many
            vectors are the same.

    Raises:
        ConfigError: If the quantizer is of another kind, balance is below 1 or not finite, or the
            settings ask for a rate, which has prices of its own.
    """
    check_balance("balanced_fit", type(quantizer), balance, settings)
    assert isinstance(quantizer, ResidualQuantizer)
    quantizer.fit(x, seed=seed, progress=progress, **settings)
    rows = torch.arange(len(x))
    if len(x) > _ROWS:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed % 2**63))
        rows = rows[:_ROWS].sort().values
    some = x[rows.to(x.device)] if isinstance(x, Tensor) else torch.from_numpy(x[rows.numpy()])
    tables = quantizer._codewords()
    some = some.to(tables[0])
    prices, largest = code_prices(
        some, tables, balance=balance, beam=quantizer.beam, progress=progress
    )
    limit = balance * len(some) / len(tables[0])
    if largest > limit:
        warnings.warn(
            f"balanced_fit: balance={balance} allows first codes of {limit:.0f} in {len(some)} "
            f"vectors; got one of {largest}. Raise balance, or remove equal vectors if there are "
            "any.",
            UserWarning,
            stacklevel=2,
        )
    penalties = some.new_zeros(len(tables), max(map(len, tables)))
    for row, price in zip(penalties, prices, strict=True):
        row[: len(price)] = price
    quantizer.state.set_penalties(penalties)
    return quantizer


def check_balance(
    where: str, kind: type[Quantizer], balance: float, settings: Mapping[str, Any]
) -> None:
    """Refuse, before any work, what `balanced_fit` cannot do; arguments and errors are its own."""
    check_number(where, "balance", balance, least=1)
    if not issubclass(kind, ResidualQuantizer):
        raise ConfigError(
            f"{where}: balance={balance} needs a ResidualQuantizer; got {kind.__name__}. "
            "Pass balance=None or method='residual'."
        )
    if rate := [name for name in ("rate_weight", "target_bits") if settings.get(name) is not None]:
        raise ConfigError(
            f"{where}: balance={balance} and {rate[0]} both set penalties. Give one of them."
        )


@torch.no_grad()
def code_prices(
    x: Tensor,
    tables: list[Tensor],
    *,
    balance: float,
    beam: int,
    progress: Progress | None = None,
) -> tuple[list[Tensor], int]:
    """Prices of all entries, by rounds of encoding and of raising what is crowded.

    First, each entry's price follows the logarithm of how many vectors too many it has: of n that
    share a whole stack of codes, n − 1 are. Then prices of first codes rise while they take more
    than their share; rounds that only crowd others are taken back.

    Args:
        x: Vectors, shape (N, dim), float32.
        tables: Codewords (K_d, dim) of each level.
        balance: Of first codes, as in `balanced_fit`.
        beam: Prefixes kept in encoding.
        progress: Told of each round.

    Returns:
        Prices (K_d,) of each level, at least 0, in the units of a squared error; and the vectors
        of the largest first code under them.
    """
    sizes = [len(table) for table in tables]
    limit = balance * len(x) / sizes[0]
    prices = [x.new_zeros(size) for size in sizes]

    def encode() -> tuple[Tensor, Tensor]:
        codes = encode_vectors(x, tables, beam=beam, penalties=prices)
        return codes, torch.bincount(codes[:, 0], minlength=sizes[0])

    codes, counts = encode()
    error = float((x - sum_codewords(codes, tables)).square().sum(dim=1).mean())
    for step in range(_SPREADING):
        pace = _PACE * error * (1 if step < _SETTLING * _SPREADING else _SLOW)
        surplus = _surplus(codes)
        for price, column in zip(prices, codes.T, strict=True):
            own = 1 + torch.bincount(column, weights=surplus, minlength=len(price))
            price += pace * (own / own.mean()).log().to(price)
        codes, counts = encode()
        report(progress, "prices", step + 1, _SPREADING + _LIMITING)
    pace, best = _LIMIT_PACE * error, (prices[0], counts)
    for step in range(_LIMITING):
        if int(counts.max()) <= limit:
            break
        rises = (counts / (_AIM * limit)).clamp(min=1).log().to(prices[0])
        prices[0] = prices[0] + pace * rises
        codes, counts = encode()
        least, now = (_beyond(own, limit) for own in (best[1], counts))
        best = (prices[0], counts) if now < least else best
        pace *= _HASTE
        if now > least + _PATIENCE * len(x):  # what had to give way crowds elsewhere
            (prices[0], counts), pace = best, pace * _RESTRAINT
        report(progress, "prices", _SPREADING + step + 1, _SPREADING + _LIMITING)
    prices[0], counts = best
    report(progress, "prices", _SPREADING + _LIMITING, _SPREADING + _LIMITING)
    return [price - price.min() for price in prices], int(counts.max())


def _beyond(counts: Tensor, limit: float) -> float:
    """How many vectors are too many for their first codes."""
    return float((counts - limit).clamp(min=0).sum())


def _surplus(codes: Tensor) -> Tensor:
    """Of n vectors with the same codes, (n − 1) / n each: shape (N,), float64."""
    _, which, alike = codes.unique(dim=0, return_inverse=True, return_counts=True)
    return 1 - 1 / alike[which].double()
