"""Orthogonal matrices that turn vectors before their dimensions are dealt out to groups."""

import numpy as np
import torch
from torch import Tensor

from rqtoolkit.functional.streaming import covariance

__all__ = ["balanced_rotation", "procrustes", "random_rotation"]

_CHUNK_ROWS = 2**16


def random_rotation(dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw an orthogonal matrix, all equally likely, shape (dim, dim), float32.

    Args:
        dim: Vector size.
        generator: Source of chance, on the CPU; torch's default generator when None.

    References:
        Mezzadri, "How to generate random matrices from the classical compact groups", 2007
        (the signs of R make the result uniform). https://arxiv.org/abs/math-ph/0609050
    """
    gaussian = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(gaussian)
    return (q * r.diagonal().sign()).float()


def balanced_rotation(x: Tensor, groups: int) -> Tensor:
    """Principal axes of x, dealt out so that the groups have about equal products of variance.

    For Gaussian data this is the rotation of least error of a product quantizer.

    Args:
        x: Vectors, shape (N, dim).
        groups: Parts of equal size that the turned dimensions fall into.

    Returns:
        Matrix whose rows are the new axes, shape (dim, dim), float32: x @ R.T is turned.

    References:
        Ge et al., "Optimized Product Quantization", CVPR 2013, section 3.2 (eigenvalue
        allocation). https://doi.org/10.1109/CVPR.2013.379
    """
    rows = x.cpu().numpy()
    chunks = (rows[start : start + _CHUNK_ROWS] for start in range(0, len(rows), _CHUNK_ROWS))
    variances, axes = np.linalg.eigh(covariance(chunks))
    least = max(float(variances[-1]), float(np.finfo(np.float32).tiny)) * 1e-12
    logs = np.log(np.maximum(variances, least))
    logs -= logs.min()  # products of variances are compared as if no variance were below 1
    dealt: list[list[int]] = [[] for _ in range(groups)]
    for axis in range(len(logs) - 1, -1, -1):
        free = [group for group in dealt if len(group) < len(logs) // groups]
        min(free, key=lambda group: float(logs[group].sum())).append(axis)
    order = [axis for group in dealt for axis in group]
    return torch.from_numpy(np.ascontiguousarray(axes[:, order].T)).float()


def procrustes(x: Tensor, target: Tensor) -> Tensor:
    """Return the orthogonal R that makes ‖x Rᵀ − target‖ least.

    Args:
        x: Vectors, shape (N, dim).
        target: What they should become, same shape.

    Returns:
        Shape (dim, dim), float32.

    References:
        Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.
    """
    u, _, vt = torch.linalg.svd((target.T @ x).double())
    return (u @ vt).float()
