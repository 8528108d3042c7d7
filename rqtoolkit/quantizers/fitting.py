"""Fit the codebooks of a residual quantizer to a matrix, level by level, for greedy encoding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rqtoolkit.functional.assign import nearest_codes
from rqtoolkit.functional.kmeans import kmeans
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.quantizers.projections import LevelProjections

__all__ = ["kmeans_tables", "sampled_tables"]

Cluster = Callable[[Tensor, int, int], Tensor]
"""Called as cluster(residuals, codebook_size, level); returns codewords (codebook_size, dim)."""


def kmeans_tables(
    x: Tensor,
    codebook_sizes: Sequence[int],
    depth: int,
    *,
    iterations: int = 25,
    starts: int = 1,
    seed: int = 0,
    projections: LevelProjections | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Codebooks by k-means on what each level leaves over, a different seed per level.

    Args:
        x: Vectors, shape (N, dim), float32.
        codebook_sizes: Entries of each table: one number for a shared codebook, else one a level.
        depth: Levels.
        iterations: Lloyd iterations a level.
        starts: k-means++ starts a level.
        seed: Fixes the result.
        projections: Into the spaces that the levels' codewords are in, where they are not that of
            the vectors.
        progress: Told of each level.

    Returns:
        Tables, shape (T, K, dim), T as many as codebook_sizes, padded with zeros.

    Raises:
        DataError: If there are fewer vectors than codewords.
    """

    def cluster(residuals: Tensor, size: int, level: int) -> Tensor:
        table = kmeans(
            residuals,
            size,
            iterations=iterations,
            starts=starts,
            seed=(seed * 1009 + level) % 2**63,
        )
        report(progress, "k-means", level + 1, depth)
        return table

    return _walk_levels(x, codebook_sizes, depth, cluster, projections)


def sampled_tables(
    x: Tensor,
    codebook_sizes: Sequence[int],
    depth: int,
    generator: torch.Generator | None = None,
    *,
    projections: LevelProjections | None = None,
) -> Tensor:
    """Codebooks of vectors and residuals drawn at random, with replacement.

    Provisional tables for the time before there are vectors enough for k-means. Arguments and
    result as in `kmeans_tables`.
    """

    def cluster(residuals: Tensor, size: int, level: int) -> Tensor:  # noqa: ARG001
        rows = torch.randint(len(residuals), (size,), generator=generator, device=x.device)
        return residuals[rows]

    return _walk_levels(x, codebook_sizes, depth, cluster, projections)


def _walk_levels(
    x: Tensor,
    codebook_sizes: Sequence[int],
    depth: int,
    cluster: Cluster,
    projections: LevelProjections | None,
) -> Tensor:
    """Cluster, subtract, go on with the residual.

    A shared codebook starts as the concatenation of `depth` small ones, so that it has entries
    at the scale of every level.
    """
    shared = len(codebook_sizes) == 1
    if shared:
        sizes = [codebook_sizes[0] // depth + (d < codebook_sizes[0] % depth) for d in range(depth)]
    else:
        sizes = list(codebook_sizes)
    tables = []
    residual = x
    for level, size in enumerate(sizes):
        if size == 0:
            break
        rows = residual if projections is None else projections.into(residual, level)
        table = cluster(rows, size, level)
        tables.append(table)
        chosen = table[nearest_codes(rows, table)]
        residual = residual - (chosen if projections is None else projections.back(chosen, level))
    if shared:
        return torch.cat(tables)[None]
    padded = tables[0].new_zeros(depth, max(sizes), tables[0].shape[1])
    for level, table in enumerate(tables):
        padded[level, : len(table)] = table
    return padded
