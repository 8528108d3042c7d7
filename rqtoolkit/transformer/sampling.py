"""From logits to a drawn code: temperature, top-k, softmax, top-p, one multinomial draw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from rqtoolkit.errors import ConfigError

__all__ = ["SamplingRule", "sampling_rules"]

_WHERE = "RQTransformer.generate"

_COLD = 1e-3  # below, quotients may overflow: the largest logit becomes 0 first
_COLDEST = 1e-30  # below, the temperature itself is 0 in float32


@dataclass(frozen=True)
class SamplingRule:
    """How the code of one depth level is drawn.

    Attributes:
        temperature: Divides the logits, over 0.
        top_k: Keep the k largest logits, and every logit equal to the k-th. None keeps all.
        top_p: Keep the most likely entries up to and with the one at which their summed
            probability reaches p. None keeps all.

    Raises:
        ConfigError: If an attribute is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"{_WHERE}: temperature={self.temperature} must be over 0 and finite. "
                "Pass top_k=1 for the most likely codes."
            )
        if self.top_k is not None and (not isinstance(self.top_k, Integral) or self.top_k < 1):
            raise ConfigError(
                f"{_WHERE}: top_k={self.top_k} must be an integer of at least 1. "
                "Pass None to keep all entries."
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(
                f"{_WHERE}: top_p={self.top_p} must be over 0 and at most 1. "
                "Pass None to keep all entries."
            )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the distribution the code is drawn from.

        Args:
            logits: Unnormalised log-probabilities, shape (..., K).

        Returns:
            Probabilities, shape (..., K), float32, summing to one; filtered entries are 0.
        """
        logits = logits.float()
        if self.temperature < _COLD:
            logits = logits - logits.max(-1, keepdim=True).values
        if self.temperature != 1.0:
            logits = logits / max(self.temperature, _COLDEST)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        probabilities = logits.softmax(-1)
        if self.top_p is None or self.top_p >= 1.0:
            return probabilities
        ordered, order = probabilities.sort(-1, descending=True)
        # An entry goes when the entries before it already reach p; the first never goes.
        ordered[..., 1:].masked_fill_(ordered.cumsum(-1)[..., :-1] >= self.top_p, 0.0)
        kept = torch.empty_like(ordered).scatter_(-1, order, ordered)
        return kept / kept.sum(-1, keepdim=True)

    def draw(self, logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw one code per row.

        Args:
            logits: Unnormalised log-probabilities, shape (B, K).
            generator: Source of randomness on the device of the logits; None is torch's default.

        Returns:
            Codes, shape (B,), int64.
        """
        return torch.multinomial(self.probabilities(logits), 1, generator=generator).squeeze(-1)


def sampling_rules(
    depth: int,
    *,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int | None] | None = None,
    top_p: float | Sequence[float | None] | None = None,
) -> list[SamplingRule]:
    """Spread sampling settings over the depth levels.

    Args:
        depth: Number of levels.
        temperature: One number for all levels, or one per level.
        top_k: Likewise; None is off.
        top_p: Likewise; None and 1 are off.

    Returns:
        One rule per level.

    Raises:
        ConfigError: If a setting is out of its range or a list is not `depth` long.
    """
    settings = [
        _per_depth("temperature", temperature, depth),
        _per_depth("top_k", top_k, depth),
        _per_depth("top_p", top_p, depth),
    ]
    return [SamplingRule(*level) for level in zip(*settings, strict=True)]


def _per_depth(name: str, value: object, depth: int) -> list:
    if not isinstance(value, Sequence):
        return [value] * depth
    if len(value) != depth:
        raise ConfigError(
            f"{_WHERE}: {name}={list(value)} must hold one entry per depth level; "
            f"got {len(value)} for depth {depth}. Pass one number or {depth} of them."
        )
    return list(value)
