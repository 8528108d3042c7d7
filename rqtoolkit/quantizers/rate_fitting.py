"""Fit codebooks for codes that are entropy-coded: squared error against bits, vector by vector.

A codeword that few vectors choose costs many bits. With its price, a weight times −log2 of its
frequency, added to the squared error that the beam compares, encoding spends bits where they save
error: plain vectors get frequent codes, which cost next to nothing, and difficult ones rare codes.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.assign import level_tables, sum_codewords
from rqtoolkit.functional.encoding import encode_vectors
from rqtoolkit.functional.least_squares import joint_codebooks
from rqtoolkit.functional.progress import Progress, report

__all__ = ["code_prices", "fit_with_rate", "mean_price"]

Prices = list[Tensor]
"""Bits that each entry costs, one tensor (K_d,) per level."""

_HELD_OUT = 2**11, 2**13  # rows: a tenth of all within these, but no more than a quarter
_SAMPLE_ROWS = 2**14  # by which prices settle
_SETTLING = 2
_EARLY_TOLERANCE, _TOLERANCE = 0.03, 0.004  # of the target rate, before the last round and in it
_MOST_TRIALS = 16
_OCTAVES = 3.0  # by which the weight rises for a rate that is too high by its whole
_MOST_OCTAVES = 4.0
_LEAD = 0.25  # of the way to the target is left to the rounds


def fit_with_rate(
    x: Tensor,
    tables: Tensor,
    codebook_sizes: Sequence[int],
    depth: int,
    *,
    rate_weight: float | None = None,
    target_bits: float | None = None,
    beam: int = 5,
    rounds: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Alternate encoding at a price for bits, counting, and joint least squares.

    The rate is that of an entropy coder which knows how often each entry of each level comes:
    Σ −log2 p over the levels, averaged over rows held out. Every entry keeps a count of one at
    least, so that the price of an unused one stays finite and it can come back.

    Args:
        x: Vectors, shape (N, dim), float32.
        tables: Codebooks to start from, well fitted without a rate, shape (T, K, dim), T 1 for a
            shared codebook.
        codebook_sizes: Entries of each table.
        depth: Levels.
        rate_weight: Squared error that one bit may cost, in the units of x, at least 0.
        target_bits: Bits per vector to reach within about one percent, in place of `rate_weight`.
            Where codes take no more anyway, the weight is 0.
        beam: Prefixes kept per vector in encoding.
        rounds: Least-squares steps.
        seed: Chooses the rows held out: a tenth of all within 2048 and 8192, but at most a quarter.
        progress: Told of each round.

    Returns:
        Tables, shape (T, K, dim); the penalties of their entries, weight · −log2 p, shape
        (depth, K), zero-padded, to be used in encoding; and the weight.

    Raises:
        ConfigError: If not one of rate_weight and target_bits is given, or it is out of range.

    References:
        Chou, Lookabaugh & Gray, "Entropy-Constrained Vector Quantization", IEEE Transactions on
        Acoustics, Speech, and Signal Processing 1989. https://doi.org/10.1109/29.17498
    """
    weight, target = _check_rate(rate_weight, target_bits)
    held_out, x = _split(x, seed)
    sizes = [len(table) for table in level_tables(tables, codebook_sizes, depth)]

    def encode(rows: Tensor, tables: Tensor, prices: Prices, weight: float) -> Tensor:
        levels = level_tables(tables, codebook_sizes, depth)
        penalties = [(weight * price).to(rows.dtype) for price in prices]
        return encode_vectors(rows, levels, beam=beam, penalties=penalties)

    def settle(tables: Tensor, prices: Prices, weight: float) -> Prices:
        """Let prices follow the codes that they lead to, for a while."""
        for _ in range(_SETTLING):
            prices = code_prices(encode(x[:_SAMPLE_ROWS], tables, prices, weight), sizes)
        return prices

    prices = code_prices(encode(x, tables, [x.new_zeros(size) for size in sizes], 0.0), sizes)
    if target is not None:
        codes = encode(held_out, tables, prices, 0.0)
        bits = mean_price(codes, prices)
        levels = level_tables(tables, codebook_sizes, depth)
        weight = _first_weight(held_out, sum_codewords(codes, levels), bits)
        if bits <= target:
            weight, target = 0.0, None
    for step in range(rounds + 1):
        if target is not None:

            def rate(weight: float, tables: Tensor = tables, prices: Prices = prices) -> float:
                settled = settle(tables, prices, weight)
                return mean_price(encode(held_out, tables, settled, weight), settled)

            # At one weight the rate falls from round to round, and levels that have lost their
            # codes do not win them back: the first rounds aim above the target.
            aim = target + _LEAD * ((rounds - step) / max(rounds, 1)) * (bits - target)
            tolerance = _TOLERANCE if step == rounds else _EARLY_TOLERANCE
            weight = _find_weight(rate, aim, weight, tolerance)
        prices = settle(tables, prices, weight)
        if step < rounds:
            codes = encode(x, tables, prices, weight)
            tables = joint_codebooks(x, codes, tables, codebook_sizes)
            prices = code_prices(codes, sizes)
        report(progress, "rate", step, rounds)
    penalties = tables.new_zeros(depth, tables.shape[1])
    for level, price in enumerate(prices):
        penalties[level, : len(price)] = weight * price
    return tables, penalties, weight


def code_prices(codes: Tensor, sizes: Sequence[int]) -> Prices:
    """Bits that an entropy coder spends on each entry, −log2 of its share of the codes.

    Args:
        codes: Shape (N, depth), int64.
        sizes: Entries of each level.

    Returns:
        One tensor (K_d,) per level, float64. One is added to all counts.
    """
    counts = [
        torch.bincount(column, minlength=size).double() + 1
        for column, size in zip(codes.T, sizes, strict=True)
    ]
    return [-torch.log2(count / count.sum()) for count in counts]


def mean_price(codes: Tensor, prices: Prices) -> float:
    """Bits per vector that an entropy coder of these prices spends on codes (N, depth)."""
    return sum(float(price[column].mean()) for price, column in zip(prices, codes.T, strict=True))


def _check_rate(rate_weight: float | None, target_bits: float | None) -> tuple[float, float | None]:
    if (rate_weight is None) == (target_bits is None):
        raise ConfigError(
            f"fit_with_rate: one of rate_weight and target_bits must be given; got "
            f"rate_weight={rate_weight}, target_bits={target_bits}."
        )
    if rate_weight is not None and not 0 <= rate_weight < math.inf:
        raise ConfigError(
            f"fit_with_rate: rate_weight={rate_weight} must be finite and at least 0."
        )
    if target_bits is not None and not 0 < target_bits < math.inf:
        raise ConfigError(f"fit_with_rate: target_bits={target_bits} must be finite and above 0.")
    return rate_weight or 0.0, target_bits


def _split(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows to measure on and rows to fit, both in random order; of one row, twice it."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    least, most = _HELD_OUT
    count = min(max(len(x) // 10, least), most, math.ceil(len(x) / 4))
    return x[order[:count]], x[order[min(count, len(x) - 1) :]]


def _first_weight(x: Tensor, x_hat: Tensor, bits: float) -> float:
    """Return twice the error that a bit leaves on average: most of the bits are worth more."""
    error = float((x - x_hat).square().sum(dtype=torch.float64))
    spread = float((x - x.mean(dim=0)).square().sum(dtype=torch.float64))
    floor = max(1e-6 * spread, torch.finfo(torch.float32).tiny)
    return max(2 * error, floor) / len(x) / max(bits, 1.0)


def _find_weight(
    rate: Callable[[float], float], target: float, weight: float, tolerance: float
) -> float:
    """Return a weight at which the rate, which falls with it, is near the target.

    Growing strides until the target lies between two weights, then interpolation in the logarithm
    of the weight, where the rate is nearly straight.
    """
    above = below = None  # (log weight, rate) next to the target, of too small and too large a one
    closest, least, octaves = weight, math.inf, 0.05
    for _ in range(_MOST_TRIALS):
        bits = rate(weight)
        if abs(bits - target) < least:
            closest, least = weight, abs(bits - target)
        if least <= tolerance * target:
            break
        if bits > target:
            above = (math.log(weight), bits)
        else:
            below = (math.log(weight), bits)
        if above is None or below is None:
            octaves = max(_OCTAVES * abs(bits - target) / max(bits, target), 2 * octaves)
            octaves = min(octaves, _MOST_OCTAVES)
            weight *= 2.0 ** math.copysign(octaves, bits - target)
        else:
            share = (above[1] - target) / (above[1] - below[1])
            share = min(max(share, 0.2), 0.8)  # always leave a part behind
            weight = math.exp(above[0] + share * (below[0] - above[0]))
    return closest
