"""Does the error of online training depend on how many vectors a batch has?"""

import torch

from rqtoolkit import ResidualQuantizer
from rqtoolkit.functional.rate_distortion import relative_error

__all__ = ["BOOKS", "FEATURES", "RATIOS", "train_on_batches"]

RATIOS = (4, 1, 1 / 2, 1 / 4, 1 / 16)
"""Vectors of a batch for each codebook entry."""

DIM, DEPTH, SIZE, STEPS, ROWS = 16, 4, 1024, 400, 8192
_SPREADS = {"white": torch.ones(DIM), "unequal": torch.arange(1, DIM + 1) ** -0.5}
FEATURES = {"white": "white features", "unequal": "unequal variances"}
BOOKS = {"shared": "shared codebook", "per-level": "a codebook per level"}


def train_on_batches(
    features: str, books: str, ratio: float, *, size: int = SIZE, steps: int = STEPS
) -> dict[str, float]:
    """Train on Gaussian vectors, then measure on new ones.

    Args:
        features: A key of `FEATURES`.
        books: A key of `BOOKS`.
        ratio: Vectors of a batch for each codebook entry.
        size: Entries.
        steps: Updates.

    Returns:
        Relative error of `ROWS` new vectors in evaluation and in training mode, and the share of
        entries used at the level that uses fewest.
    """
    torch.manual_seed(0)
    spread = _SPREADS[features]
    quantizer = ResidualQuantizer(DIM, DEPTH, size, shared_codebook=books == "shared")
    for _ in range(steps):
        quantizer(torch.randn(int(size * ratio), DIM) * spread)
    x = torch.randn(ROWS, DIM) * spread
    quantizer.eval()
    out = quantizer(x)
    quantizer.train()
    return {
        "relative_error": relative_error(x, out.quantized),
        "training_error": relative_error(x, quantizer(x).quantized),
        "usage": _least_usage(out.codes, size, shared=books == "shared"),
    }


def _least_usage(codes: torch.Tensor, size: int, *, shared: bool) -> float:
    levels = [codes.flatten()] if shared else list(codes.T)
    return min(len(level.unique()) for level in levels) / size
