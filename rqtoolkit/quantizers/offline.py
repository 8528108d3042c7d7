"""Offline training of residual codebooks: standardise, fit level by level, refine jointly."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.quantizers.fitting import kmeans_tables, refine_tables

__all__ = ["fit_tables"]


def fit_tables(
    x: Tensor,
    codebook_sizes: Sequence[int],
    depth: int,
    *,
    iterations: int = 20,
    starts: int = 3,
    rounds: int = 4,
    beam: int = 5,
    prefix_weight: float = 0.0,
    start: Tensor | None = None,
    rate_weight: float | None = None,
    target_bits: float | None = None,
    time_budget: float | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Codebooks of low squared error for vectors like those of x, encoded by a beam.

    Args:
        x: Vectors, shape (N, dim), float32, N at least the largest codebook size.
        codebook_sizes: Entries of each table: one number for a shared codebook, else one a level.
        depth: Levels.
        iterations: Lloyd iterations a level.
        starts: Short k-means++ starts a level, of which the best goes on.
        rounds: Rounds of encoding and joint least squares, at most.
        beam: Prefixes kept per vector.
        prefix_weight: Weight of the error after each shorter code beside that of the whole.
        start: Tables to go on from, shape (T, K, dim), in place of a fit level by level.
        rate_weight: Squared error that one bit of entropy-coded code may cost.
        target_bits: Bits per vector to reach, entropy-coded, in place of rate_weight.
        time_budget: Seconds after which no further round begins.
        threads: Threads to use; as many as torch does when None.
        seed: Fixes the result.
        progress: Told of each level and round.

    Returns:
        Tables, shape (T, K, dim), T as many as codebook_sizes, padded with zeros; and with a rate
        asked for the penalties of their entries, shape (depth, K), else None.
    """
    with limited_threads(threads):
        tables = _fit_error(
            x,
            codebook_sizes,
            depth,
            iterations=iterations,
            starts=starts,
            rounds=rounds,
            beam=beam,
            start=start,
            seed=seed,
            progress=progress,
        )
        if rate_weight is None and target_bits is None:
            return tables, None
        from rqtoolkit.quantizers.rate_fitting import fit_with_rate

        tables, penalties, _ = fit_with_rate(
            x,
            tables,
            codebook_sizes,
            depth,
            rate_weight=rate_weight,
            target_bits=target_bits,
            beam=beam,
            rounds=rounds,
            seed=seed,
            progress=progress,
        )
        return tables, penalties


def _fit_error(
    x, codebook_sizes, depth, *, iterations, starts, rounds, beam, start, seed, progress
):
    offset, scale = _standard_units(x, shared=len(codebook_sizes) == 1)
    x = (x - offset) / scale
    if start is None:
        start = kmeans_tables(
            x,
            codebook_sizes,
            depth,
            iterations=iterations,
            starts=starts,
            seed=seed,
            progress=progress,
        )
    else:
        start = start / scale
        start[0, : codebook_sizes[0]] -= offset / scale
    tables = refine_tables(
        x, start, codebook_sizes, depth, rounds=rounds, beam=beam, progress=progress
    )
    tables = tables * scale
    tables[0, : codebook_sizes[0]] += offset
    return tables


def _standard_units(x: Tensor, *, shared: bool) -> tuple[Tensor, float]:
    """Offset (dim,) and scale with which all data look alike to the training.

    The scale is a power of two, so that no rounding depends on it. A shared codebook keeps its
    offset: no table of its own could take it back.
    """
    offset = torch.zeros_like(x[0]) if shared else x.mean(dim=0)
    spread = float((x - offset).square().mean(dtype=torch.float64).sqrt())
    scale = 2.0 ** round(torch.log2(torch.tensor(spread)).item()) if spread > 0 else 1.0
    return offset, scale
