"""Keep the nearest rows of each query, compiled by numba for one thread of a CPU."""

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.functional.kernels.compiled import compiled

__all__ = ["keep_nearest"]


@compiled
def keep_nearest(
    queries: NDArray,
    rows: NDArray,
    bounds: NDArray,
    first_row: int,
    inner_product: bool,
    scores: NDArray,
    indices: NDArray,
) -> None:
    """Put rows among the best so far, in place; of equal scores the earlier row stays ahead.

    Only rows whose bound does not exceed the worst score kept are scored, in float64 and in the
    order of the dimensions: equal rows score equally wherever they lie.

    Args:
        queries: Shape (Q, dim), float32.
        rows: Shape (n, dim), float32.
        bounds: At most the score of each query with each row, shape (Q, n), float32.
        first_row: Number of the first of the rows.
        inner_product: Score by −⟨q, y⟩ in place of ‖q − y‖².
        scores: Best scores so far, ascending, shape (Q, k), float64.
        indices: Their rows, shape (Q, k), int64.
    """
    last = scores.shape[1] - 1
    for q in range(len(queries)):
        worst = scores[q, last]
        for row in range(len(rows)):
            if bounds[q, row] > worst:
                continue
            score = 0.0
            for c in range(rows.shape[1]):
                if inner_product:
                    score -= np.float64(queries[q, c]) * np.float64(rows[row, c])
                else:
                    step = np.float64(queries[q, c]) - np.float64(rows[row, c])
                    score += step * step
            if score >= worst:
                continue
            place = last
            while place > 0 and scores[q, place - 1] > score:
                scores[q, place] = scores[q, place - 1]
                indices[q, place] = indices[q, place - 1]
                place -= 1
            scores[q, place] = score
            indices[q, place] = first_row + row
            worst = scores[q, last]
