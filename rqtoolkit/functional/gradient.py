"""Gradient estimators that carry a gradient past the choice of codes."""

from torch import Tensor

__all__ = ["straight_through"]


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized`, with the gradient of the identity with respect to x.

    Args:
        x: What was quantized, any shape.
        quantized: Its quantized value, same shape.

    Returns:
        Tensor equal to `quantized` up to rounding, whose gradient flows to x unchanged.

    References:
        Bengio, Léonard & Courville, "Estimating or Propagating Gradients Through Stochastic
        Neurons for Conditional Computation", 2013. https://arxiv.org/abs/1308.3432
    """
    return x + (quantized - x).detach()
