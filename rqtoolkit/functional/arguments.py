"""What numbers constructors accept, with the errors for the rest."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from rqtoolkit.errors import ConfigError

__all__ = [
    "LARGEST_VALUE",
    "check_count",
    "check_number",
    "check_rate",
    "check_seed",
    "check_sizes",
    "plain",
    "shown",
]

LARGEST_VALUE = 1e15
"""Of vectors: squares of larger values, summed, leave the range of float32."""


def plain(value: Any) -> Any:
    """Return a value with Python's own numbers, strings and lists in place of numpy's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


def shown(value: Any) -> str:
    """Return how messages name a value, be it numpy's or not."""
    return repr(plain(value))


def check_count(where: str, name: str, value: Any) -> int:
    """Return a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise ConfigError(f"{where}: {name}={shown(value)} must be an integer of at least 1.")
    return int(value)


def check_rate(where: str, name: str, value: float) -> float:
    """Return a probability under 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"{where}: {name}={shown(value)} must be at least 0 and under 1.")
    return float(value)


def check_number(
    where: str, name: str, value: Any, *, over: float | None = None, least: float | None = None
) -> float:
    """Return a finite number; one over a bound, or of at least another."""
    rule = "a finite number"
    rule += f" over {over}" * (over is not None) + f" of at least {least}" * (least is not None)
    fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if fits and (over is None or value > over) and (least is None or value >= least):
        return float(value)
    raise ConfigError(f"{where}: {name}={shown(value)} must be {rule}.")


def check_seed(where: str, seed: Any) -> int:
    """Return a seed that numpy and torch both take: a whole number from 0, of 63 bits."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise ConfigError(f"{where}: seed={shown(seed)} must be an integer from 0 to 2**63 - 1.")
    return int(seed)


def check_sizes(where: str, codebook_size: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Return one codebook size per depth level."""
    if isinstance(codebook_size, Sequence) and not isinstance(codebook_size, str):
        sizes = list(codebook_size)
    else:
        sizes = [codebook_size] * depth
    if len(sizes) != depth:
        raise ConfigError(
            f"{where}: codebook_size={shown(sizes)} must hold one size per level; "
            f"got {len(sizes)} for depth={depth}. Pass one integer or {depth} of them."
        )
    return tuple(check_count(where, "codebook_size", size) for size in sizes)
