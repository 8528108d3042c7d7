"""Gradient estimators that carry a gradient past the choice of codes."""

import torch
from torch import Tensor

__all__ = ["rotation_trick", "straight_through", "with_gradient"]


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized`, with the gradient of the identity with respect to x.

    Args:
        x: What was quantized, any shape.
        quantized: Its quantized value, same shape.

    Returns:
        Tensor equal to `quantized` where x is finite, whose gradient flows to x unchanged.

    References:
        Bengio, Léonard & Courville, "Estimating or Propagating Gradients Through Stochastic
        Neurons for Conditional Computation", 2013. https://arxiv.org/abs/1308.3432
    """
    return quantized.detach() + (x - x.detach())


def rotation_trick(x: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized`, with the gradient of the rotation and scaling that takes x to it.

    With e and q the directions of x and its quantized value, R the rotation in their plane that
    takes e to q, and λ the ratio of their norms, the gradient is that of x ↦ λ R x, R and λ held
    fixed: angles between gradients and vectors stay what they are at the quantized value. Where
    there is no such rotation (either is 0, x beside the quantized value too, or they are opposite),
    it is the identity.

    Args:
        x: What was quantized, shape (..., dim).
        quantized: Its quantized value, same shape.

    References:
        Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", ICLR 2025,
        section 4. https://arxiv.org/abs/2410.06424
    """
    fixed, quantized = x.detach(), quantized.detach()
    norm, quantized_norm = _norm(fixed), _norm(quantized)
    tiny = torch.finfo(x.dtype).tiny
    e, q = fixed / norm.clamp_min(tiny), quantized / quantized_norm.clamp_min(tiny)
    middle, middle_norm = e + q, _norm(e + q)
    eps = torch.finfo(x.dtype).eps
    # Closer to opposite than √eps, the middle is made of rounding.
    turns = (norm > eps * quantized_norm) & (quantized_norm > tiny) & (middle_norm > eps**0.5)
    middle = middle / middle_norm.clamp_min(tiny)
    turned = x - 2 * middle * _dot(middle, x) + 2 * q * _dot(e, x)
    # A ratio that is not used must be finite all the same: 0 · inf in the backward pass is NaN.
    ratio = torch.where(turns, quantized_norm, 0) / norm.clamp_min(tiny)
    estimate = torch.where(turns, turned * ratio, x)
    return quantized + (estimate - estimate.detach())


def with_gradient(value: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """Return a scalar as it is, with a gradient with respect to x that is known already.

    The gradient is a constant to a second derivative.

    Args:
        value: Scalar without gradient.
        x: What it depends on, any shape.
        gradient: Derivative of the value with respect to x, same shape.
    """
    return value.detach() + torch.dot(gradient.detach().flatten(), (x - x.detach()).flatten())


def _norm(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)
