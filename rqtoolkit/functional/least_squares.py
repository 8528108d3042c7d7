"""Re-estimate all codebooks at once, given the codes: the joint least-squares step.

With B the (N, M) matrix that counts which of the M codewords each vector uses, the codebooks C
that minimise ‖X − B C‖² solve BᵀB C = BᵀX. Level-by-level k-means never sees this coupling.
"""

from collections.abc import Sequence
from itertools import accumulate, combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse
from torch import Tensor

from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES, chunk_slices, level_tables

__all__ = ["NormalEquations", "joint_codebooks"]

_DENSE_LIMIT = 6144  # codewords up to which BᵀB is kept and factorised densely (300 MB in float64)
_GRADIENT_STEPS = 60


def joint_codebooks(
    x: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    codebook_sizes: Sequence[int],
    *,
    strength: float = 1.0,
    prefix_weight: float = 0.0,
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
        prefix_weight: Weight of the error after each shorter code beside that of the whole.

    Returns:
        New tables, shape and dtype of `codebooks`. Rows beyond a table's size are unchanged.

    References:
        Babenko & Lempitsky, "Additive Quantization for Extreme Vector Compression", CVPR 2014,
        section 3 (codebook learning). https://doi.org/10.1109/CVPR.2014.124
    """
    equations = NormalEquations(codebook_sizes, codes.shape[1], x.shape[1])
    equations.add(x, codes[:, None])
    return equations.solve(codebooks, strength=strength, prefix_weight=prefix_weight)


class NormalEquations:
    """BᵀB and BᵀX of vectors that come in batches, with what came first forgotten bit by bit.

    Each vector may bring several stacks of codes, with weights: those of a beam's last prefixes say
    which codewords the vector nearly chose.

    Args:
        codebook_sizes: Entries in use of each table: one number for a shared codebook, else one a
            level.
        depth: Levels.
        dim: Vector size.
    """

    def __init__(self, codebook_sizes: Sequence[int], depth: int, dim: int) -> None:
        self.codebook_sizes, self.depth = tuple(codebook_sizes), depth
        self.shared = len(codebook_sizes) == 1
        # Levels have columns of their own, also where they share a table: their weights differ.
        self.level_sizes = list(codebook_sizes) * (depth if self.shared else 1)
        self.starts = [0, *accumulate(self.level_sizes)]
        columns = self.starts[-1]
        self.counts = np.zeros(columns)
        self.right = np.zeros((columns, dim))
        self.dense = columns <= _DENSE_LIMIT
        shape = (columns, columns)
        self.pairs = np.zeros(shape, np.float32) if self.dense else sparse.csr_array(shape)

    def add(self, x: Tensor, codes: Tensor, weights: Sequence[float] = (1.0,)) -> None:
        """Take a batch into account.

        Args:
            x: Vectors, shape (N, dim), float32.
            codes: Stacks of codes of each, shape (N, S, depth), int64.
            weights: Of the first, second, … stack.
        """
        rows, stacks, _ = codes.shape
        share = np.asarray(weights[:stacks]) / sum(weights[:stacks])
        own = np.tile(share, rows)
        flat = codes.cpu().numpy().reshape(-1, self.depth)
        columns = flat + np.array(self.starts[:-1])
        for level, size in enumerate(self.level_sizes):
            counts = np.bincount(flat[:, level], own, minlength=size)
            self.counts[self.starts[level] : self.starts[level + 1]] += counts
        if self.dense:
            self._add_pairs(flat, own)
        else:
            pointers = np.arange(0, columns.size + 1, self.depth)
            shape = (len(flat), self.starts[-1])
            uses = sparse.csr_array((np.ones(columns.size), columns.ravel(), pointers), shape)
            weighted = sparse.csr_array((own.repeat(self.depth), columns.ravel(), pointers), shape)
            self.pairs = self.pairs + sparse.triu(uses.T @ weighted, 1, format="csr")
        per_row = stacks * self.depth
        values = np.tile(share.repeat(self.depth), rows).astype(np.float32)
        columns = columns.reshape(rows, per_row)
        for chunk in chunk_slices(rows, 4 * (x.shape[1] + 3 * per_row), DEFAULT_MAX_BYTES):
            part = columns[chunk].ravel()
            pointers = np.arange(0, part.size + 1, per_row)
            shape = (len(pointers) - 1, self.starts[-1])
            uses = sparse.csr_array((values[: part.size], part, pointers), shape)
            self.right += uses.T @ x[chunk].detach().cpu().numpy()

    @property
    def vectors(self) -> float:
        """How many vectors have been added, less what is forgotten."""
        return float(self.counts[: self.starts[1]].sum())

    def _add_pairs(self, codes: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Count how often codewords of two levels meet, one block per pair of levels."""
        for first, second in combinations(range(self.depth), 2):
            shape = (self.level_sizes[first], self.level_sizes[second])
            meeting = codes[:, first] * shape[1] + codes[:, second]
            block = np.bincount(meeting, weights, minlength=shape[0] * shape[1]).reshape(shape)
            above = slice(*self.starts[first : first + 2]), slice(*self.starts[second : second + 2])
            self.pairs[above] += block

    def forget(self, share: float) -> None:
        """Let everything so far count `share` less."""
        for sums in (self.counts, self.right, self.pairs):
            sums *= 1 - share

    def solve(
        self, codebooks: Tensor, *, strength: float = 1.0, prefix_weight: float = 0.0
    ) -> Tensor:
        """Codebooks of least squared error; arguments and result as in `joint_codebooks`."""
        counts, pairs, right = self.counts, self.pairs, self.right
        if prefix_weight:
            counts, pairs, right = self._with_prefixes(prefix_weight)
        if self.shared:
            counts, pairs, right = self._folded(counts, pairs, right)
        tables = level_tables(codebooks.detach(), self.codebook_sizes, len(self.codebook_sizes))
        current = torch.cat(tables).cpu().numpy()
        # Solving for the change keeps the right-hand side small, and an exact fit in place.
        right = right - (pairs @ current + pairs.T @ current) - counts[:, None] * current
        change = _solve(pairs, counts + strength, right.astype(np.float32))
        solved = codebooks.detach().clone()
        split = torch.from_numpy(current + change).to(solved).split(list(self.codebook_sizes))
        for table, size, values in zip(solved, self.codebook_sizes, split, strict=True):
            table[:size] = values
        return solved

    def _with_prefixes(self, weight: float) -> tuple[NDArray, Any, NDArray]:
        """Counts, pairs and sums that mind the error after each shorter code too.

        Level i is in depth − 1 − i of the shorter codes, and two levels in as many as the later.
        """
        shorter = np.arange(self.depth, dtype=np.float32)[::-1]
        gain = (1 + weight * shorter).repeat(self.level_sizes)
        pairs = self.pairs * gain if self.dense else self.pairs @ sparse.diags_array(gain)
        return gain * self.counts, pairs, gain[:, None] * self.right

    def _folded(self, counts: NDArray, pairs: Any, right: NDArray) -> tuple[NDArray, Any, NDArray]:
        """Add up the columns of all levels that stand for one codeword of a shared codebook."""
        once = sparse.csr_array(
            sparse.vstack([sparse.eye_array(self.codebook_sizes[0])] * self.depth)
        )
        pairs = sparse.csr_array(once.T @ pairs @ once)
        counts = once.T @ counts + 2 * pairs.diagonal()  # one codeword on two levels
        return counts, sparse.triu(pairs + pairs.T, 1, format="csr"), once.T @ right


def _solve(pairs: Any, diagonal: NDArray, right: NDArray) -> NDArray:
    """Solve (pairs + pairsᵀ + diag(diagonal)) Y = right, symmetric positive definite.

    Args:
        pairs: Strictly upper triangle, dense or sparse.
        diagonal: Positive.
        right: One right-hand side a column, float32.
    """
    if len(right) > _DENSE_LIMIT:
        normal = sparse.csr_array(pairs + pairs.T + sparse.diags_array(diagonal))
        return _conjugate_gradient(normal, right)
    full = pairs.toarray() if sparse.issparse(pairs) else pairs
    for precision in (np.float32, np.float64):
        matrix = full.astype(precision)
        matrix[np.diag_indices_from(matrix)] = diagonal
        try:
            # The transpose lies in memory as LAPACK wants it: nothing is copied.
            factor = linalg.cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:
            if precision is np.float64:
                raise
        else:
            break
    return linalg.cho_solve(factor, right, check_finite=False)


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
