"""Re-estimate all codebooks at once, given the codes: the joint least-squares step.

With B the (N, M) matrix that counts which of the M codewords each vector uses, the codebooks C
that minimise ‖X − B C‖² solve BᵀB C = BᵀX. Level-by-level k-means never sees this coupling.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import linalg, sparse
from torch import Tensor

from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, chunk_slices

__all__ = ["joint_codebooks"]

_DENSE_LIMIT = 6144  # codewords up to which BᵀB is factorised densely (300 MB in float64)
_GRADIENT_STEPS = 60


def joint_codebooks(
    x: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    codebook_sizes: Sequence[int],
    *,
    strength: float = 1.0,
) -> Tensor:
    """Codebooks of least squared error for the given codes, kept near the current ones.

    Solves min ‖X − B C‖² + strength · ‖C − C_now‖². The second term makes the system definite
    (codebooks are only determined up to shifts between levels, and unused codewords not at all)
    and leaves unused codewords where they are; pulling towards zero instead was measured to hurt.

    Args:
        x: Vectors, shape (N, dim), float32.
        codes: Shape (N, depth), int64.
        codebooks: Current tables, shape (depth, K, dim), or (1, K, dim) for a shared one.
        codebook_sizes: Entries in use of each table, one number per table.
        strength: Weight of staying near the current codebooks, in vectors per codeword.

    Returns:
        New tables, shape and dtype of `codebooks`. Rows beyond a table's size are unchanged.

    References:
        Babenko & Lempitsky, "Additive Quantization for Extreme Vector Compression", CVPR 2014,
        section 3 (codebook learning). https://doi.org/10.1109/CVPR.2014.124
    """
    tables, padded_size, dim = codebooks.shape
    rows, depth = codes.shape
    first_row = torch.arange(depth) * (padded_size if tables > 1 else 0)
    columns = (codes.cpu() + first_row).numpy().ravel()
    pointers = np.arange(0, rows * depth + 1, depth)
    uses = sparse.csr_array(
        (np.ones(rows * depth), columns, pointers), shape=(rows, tables * padded_size)
    )
    current = codebooks.detach().reshape(-1, dim).cpu().double().numpy()
    # Solving for the change keeps the right-hand side small, and an exact fit exactly in place.
    right = np.zeros_like(current)
    for chunk in chunk_slices(rows, 3 * 8 * dim, DEFAULT_MAX_BYTES):
        residual = x[chunk].detach().cpu().double().numpy() - uses[chunk] @ current
        right += uses[chunk].T @ residual
    live = np.concatenate(
        [np.arange(size) + table * padded_size for table, size in enumerate(codebook_sizes)]
    )
    normal = (uses.T @ uses).tocsr()[live][:, live] + strength * sparse.eye_array(len(live))
    current[live] += _solve(normal.tocsr(), right[live])
    return torch.from_numpy(current).to(codebooks).view_as(codebooks)


def _solve(normal: sparse.csr_array, right: np.ndarray) -> np.ndarray:
    """Solve the symmetric positive definite system for all columns of `right`."""
    if normal.shape[0] <= _DENSE_LIMIT:
        factor = linalg.cho_factor(normal.toarray(), overwrite_a=True, check_finite=False)
        return linalg.cho_solve(factor, right, check_finite=False)
    return _conjugate_gradient(normal, right)


def _conjugate_gradient(normal: sparse.csr_array, right: np.ndarray) -> np.ndarray:
    """Conjugate gradients with a diagonal preconditioner, all columns side by side."""
    inverse_diagonal = 1.0 / normal.diagonal()[:, None]
    solution = np.zeros_like(right)
    residual = right.copy()
    direction = scaled = inverse_diagonal * residual
    product = (residual * scaled).sum(axis=0)
    goal = 1e-10 * np.maximum(product, np.finfo(float).tiny)
    for _ in range(_GRADIENT_STEPS):
        image = normal @ direction
        curvature = np.maximum((direction * image).sum(axis=0), np.finfo(float).tiny)
        step = product / curvature
        solution += step * direction
        residual -= step * image
        scaled = inverse_diagonal * residual
        next_product = (residual * scaled).sum(axis=0)
        if (next_product <= goal).all():
            break
        direction = scaled + (next_product / np.maximum(product, np.finfo(float).tiny)) * direction
        product = next_product
    return solution
