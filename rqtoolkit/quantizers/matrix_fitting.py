"""Training on a matrix of vectors: the method `fit` of `ResidualQuantizer`."""

from math import log2
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.functional.progress import Progress
from rqtoolkit.quantizers import checks
from rqtoolkit.quantizers.offline import fit_tables

if TYPE_CHECKING:
    from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["fit"]

_ROWS_PER_CODE = 1024


@torch.no_grad()
def fit(
    quantizer: "ResidualQuantizer",
    X: NDArray | Tensor,
    *,
    iterations: int = 40,
    starts: int = 1,
    rounds: int = 4,
    beam: int = 5,
    prefix_weight: float = 0.0,
    warm_start: bool = False,
    rate_weight: float | None = None,
    target_bits: float | None = None,
    time_budget: float | None = None,
    max_rows: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> "ResidualQuantizer":
    """Train offline on a matrix: level by level, then all levels by joint least squares.

    Args:
        X: Vectors, shape (N, dim), numpy (also memory-mapped) or torch, finite, N at least the
            largest codebook size.
        iterations: Lloyd iterations a level.
        starts: Short k-means++ starts a level, of which the best goes on.
        rounds: Rounds of encoding and joint least squares over all levels, at most.
        beam: Prefixes kept per vector while training, and from then on in `encode`.
        prefix_weight: Weight of the error after each shorter code beside that of the whole, so
            that codes cut short stay good; 0 minds the whole alone.
        warm_start: Go on from the quantizer's own tables in place of starting afresh.
        rate_weight: Squared error that one bit of entropy-coded code may cost: keeps
            `penalties`, which make `encode` prefer frequent codes.
        target_bits: Bits per vector to reach, entropy-coded, in place of `rate_weight`.
        time_budget: Seconds after which no further round begins.
        max_rows: Rows used, drawn at random; 1024 per codeword when None.
        threads: Threads to use; as many as torch does when None.
        seed: Fixes the result.
        progress: Told of each level and round.

    Returns:
        The quantizer itself, fitted.

    Raises:
        ShapeError: If X is not (N, dim).
        DataError: If X is not numeric or finite, or has too few rows.
        ConfigError: If a number is out of range, or the quantizer is frozen or does not choose
            the nearest codeword (similarity="cosine", codebook_dim).
        MissingDependencyError: If faiss is not installed.
    """
    checks.check_fit(
        quantizer.frozen,
        iterations=iterations,
        starts=starts,
        beam=beam,
        rounds=rounds,
        prefix_weight=prefix_weight,
        rate_weight=rate_weight,
        target_bits=target_bits,
        most_bits=sum(log2(size) for size in quantizer.codebook_sizes),
        time_budget=time_budget,
    )
    checks.check_plain(quantizer._name("fit"), quantizer.similarity, quantizer.codebook_dim)
    if max_rows is None:
        max_rows = _ROWS_PER_CODE * max(quantizer.codebook_sizes)
    sizes = quantizer.state.codebook_sizes
    x = checks.training_rows(
        quantizer._name("fit"), X, quantizer.dim, min_rows=max(sizes), max_rows=max_rows, seed=seed
    ).to(quantizer.state.tables.device)
    tables, penalties = fit_tables(
        x,
        sizes,
        quantizer.depth,
        iterations=iterations,
        starts=starts,
        rounds=rounds,
        beam=beam,
        prefix_weight=prefix_weight,
        start=quantizer.codebooks if warm_start else None,
        rate_weight=rate_weight,
        target_bits=target_bits,
        time_budget=time_budget,
        threads=threads,
        seed=seed,
        progress=progress,
    )
    quantizer.state.set_beam(beam)
    quantizer.state.set_tables(
        tables, vectors=len(x) * (quantizer.depth if quantizer.shared_codebook else 1)
    )
    quantizer.state.set_penalties(penalties)
    return quantizer
