"""Cross-entropy of a linear classifier without ever holding the logits of all rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, chunk_slices

__all__ = ["Targets", "linear_cross_entropy"]

Targets = Tensor | Callable[[slice], Tensor]
"""Codes (N,), probabilities (N, K), or a function from a slice of rows to theirs."""


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor, targets: Targets, *, max_bytes: int = DEFAULT_MAX_BYTES
) -> Tensor:
    """Mean cross-entropy of softmax(x Wᵀ + b) against codes or probabilities, chunk by chunk.

    For mean cross-entropy, the gradient of a logit is (softmax − target) / N, known as soon as the
    logit is. A chunk of rows therefore gives its share of all gradients in the forward pass, in
    the three matrix products that the plain way takes, and its logits are forgotten. What is kept
    has the shapes of x, weight and bias. Under autocast the matrix products run in its type;
    softmax and all sums over chunks are at least float32.

    Args:
        x: Inputs of the classifier, shape (N, dim).
        weight: Shape (K, dim).
        bias: Shape (K,).
        targets: Codes (N,), int64; or probabilities (N, K); or a function that gives the
            probabilities of a slice of rows when asked. No gradient goes to them.
        max_bytes: Bound on the logits held at once; a few tensors of that size exist at a time.

    Returns:
        Scalar, in nats, at least float32. It can be differentiated once.

    References:
        Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024, section 3.2
        (the fused linear cross-entropy). https://arxiv.org/abs/2410.10989
    """
    return _LinearCrossEntropy.apply(x, weight, bias, targets, max_bytes, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Targets,
        max_bytes: int,
        grad_enabled: bool,
    ) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        needed = [grad_enabled and wanted for wanted in ctx.needs_input_grad[:3]]
        grads = [
            torch.zeros_like(tensor, dtype=exact) if wanted else None
            for tensor, wanted in zip((x, weight, bias), needed, strict=True)
        ]
        low = [_autocast(tensor) for tensor in (x, weight, bias)]
        loss, count = x.new_zeros((), dtype=exact), max(len(x), 1)
        for rows in chunk_slices(len(x), len(weight) * exact.itemsize, max_bytes):
            part = low[0][rows]
            logits = F.linear(part, *low[1:])
            log_p = logits.to(exact).log_softmax(-1)
            target = targets[rows] if isinstance(targets, Tensor) else targets(rows)
            if target.is_floating_point():
                target = target.to(exact)
                loss -= (target * log_p).sum()  # autocast would round linalg.vecdot
            else:
                target = target.unsqueeze(-1)
                loss -= log_p.gather(-1, target).sum()
            if any(needed):
                delta = _logit_gradient(log_p, target).to(logits.dtype)
                if grads[0] is not None:
                    grads[0][rows] = delta @ low[1]
                if grads[1] is not None:
                    grads[1] += delta.T @ part
                if grads[2] is not None:
                    grads[2] += delta.sum(0, dtype=exact)
        ctx.save_for_backward(
            *(
                None if grad is None else grad.div_(count).to(tensor.dtype)
                for grad, tensor in zip(grads, (x, weight, bias), strict=True)
            )
        )
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if g is None else g * grad_output.to(g.dtype) for g in ctx.saved_tensors)
        return (*grads, None, None, None)


def _autocast(tensor: Tensor) -> Tensor:
    """Cast as autocast would, once in place of once per chunk."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def _logit_gradient(log_p: Tensor, target: Tensor) -> Tensor:
    """Return softmax · Σ target − target; overwrites log_p (n, K). Codes are (n, 1)."""
    p = log_p.exp_()
    if target.is_floating_point():
        return p.mul_(target.sum(-1, keepdim=True)).sub_(target)
    return p.scatter_add_(-1, target, p.new_full(target.shape, -1.0))
