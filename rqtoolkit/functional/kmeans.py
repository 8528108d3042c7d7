"""K-means: greedy k-means++ seeding handed to faiss's Lloyd iterations.

faiss's own k-means++ proved no better than random starts on real embeddings; trying several
candidates for each seed and keeping the one that lowers the error most, as scikit-learn does, is.
"""

from math import log
from types import ModuleType

import torch
from torch import Tensor

from rqtoolkit.errors import DataError, MissingDependencyError

__all__ = ["greedy_kmeans_plus_plus", "import_faiss", "kmeans"]

_POINTS_PER_CODE = 256  # Lloyd on more than this per centroid costs time and gains nothing visible
_SEEDING_POINTS_PER_CODE = 64
_SEEDS_PER_STEP = 1 / 64


def import_faiss() -> ModuleType:
    """Import faiss, or say which package provides it.

    Raises:
        MissingDependencyError: If neither faiss-cpu nor faiss-gpu is installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "rqtoolkit: faiss is not installed; k-means needs it. Install one of them (never both, "
            "they provide the same module): pip install 'rqtoolkit[cpu]' or 'rqtoolkit[gpu]'."
        ) from error
    return faiss


def greedy_kmeans_plus_plus(
    x: Tensor, codebook_size: int, *, generator: torch.Generator, candidates: int | None = None
) -> Tensor:
    """Choose `codebook_size` rows of x as seeds, spread by squared distance.

    Each step draws candidates with probability proportional to the squared distance from the
    seeds so far and keeps the one that lowers the total most. Once many seeds exist, a step adds
    one seed in 64 of those present instead of one: the distances to all candidates are then one
    matrix product, and the seeds of a step hardly influence each other.

    Args:
        x: Vectors, shape (N, dim), N at least codebook_size.
        codebook_size: Seeds to choose.
        generator: Source of chance, on the CPU.
        candidates: Candidates per seed; 2 + ln(codebook_size) when None, at most 8.

    Returns:
        Seeds, shape (codebook_size, dim): rows of x.

    References:
        Arthur & Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007, section
        5 (greedy variant). https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
    """
    if candidates is None:
        candidates = min(8, 2 + int(log(codebook_size)))
    norms = x.square().sum(dim=1)
    first = int(torch.randint(x.shape[0], (1,), generator=generator))
    chosen = [torch.tensor([first], device=x.device)]
    nearest = _distances_to(x, norms, chosen[0]).squeeze(0)
    count = 1
    while count < codebook_size:
        seeds = min(max(1, int(count * _SEEDS_PER_STEP)), codebook_size - count)
        drawn = _draw_by_distance(nearest, seeds * candidates, generator)
        distances = torch.minimum(_distances_to(x, norms, drawn), nearest)
        totals = distances.sum(dim=1, dtype=torch.float64).view(seeds, candidates)
        best = totals.argmin(dim=1) + torch.arange(seeds, device=x.device) * candidates
        nearest = distances[best].amin(dim=0)
        chosen.append(drawn[best])
        count += seeds
    return x[torch.cat(chosen)]


def _distances_to(x: Tensor, norms: Tensor, rows: Tensor) -> Tensor:
    """Squared distances (len(rows), N) from the given rows of x to all of x, never below zero."""
    products = torch.addmm(norms, x[rows], x.T, alpha=-2)
    return products.add_(norms[rows, None]).clamp_(min=0)


def _draw_by_distance(nearest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw rows with probability proportional to `nearest`, by inverting the cumulative sum."""
    cumulative = nearest.cumsum(dim=0, dtype=torch.float64)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64).to(nearest.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
    return drawn.clamp_(max=nearest.shape[0] - 1)


def kmeans(
    x: Tensor,
    codebook_size: int,
    *,
    iterations: int = 25,
    starts: int = 1,
    seed: int = 0,
) -> Tensor:
    """Cluster vectors by Lloyd's algorithm in faiss, from greedy k-means++ seeds.

    With several starts, each runs a fifth of the iterations, and the best goes on for the rest.
    At most 256 vectors per codeword take part (64 in the seeding), drawn at random.

    Args:
        x: Vectors, shape (N, dim), on any device; computed in float32.
        codebook_size: Number of centroids, at most N.
        iterations: Lloyd iterations of the winning start.
        starts: Independent seedings to choose from.
        seed: Fixes the result.

    Returns:
        Centroids, shape (codebook_size, dim), float32, on the device of x.

    Raises:
        DataError: If there are fewer vectors than codewords.
        MissingDependencyError: If faiss is not installed.
    """
    if x.shape[0] < codebook_size:
        raise DataError(
            f"kmeans: codebook_size={codebook_size} needs at least as many vectors; got "
            f"{x.shape[0]}. Give more vectors or a smaller codebook_size."
        )
    generator = torch.Generator().manual_seed(seed)
    points = _sample(x.detach().float(), _POINTS_PER_CODE * codebook_size, generator)
    # Centred data keep the expanded squares of both seeding and faiss from cancelling.
    center = points.mean(dim=0)
    points = points - center
    trials = []
    for _ in range(starts):
        pool = _sample(points, _SEEDING_POINTS_PER_CODE * codebook_size, generator)
        seeds = greedy_kmeans_plus_plus(pool, codebook_size, generator=generator)
        short = iterations if starts == 1 else max(1, iterations // 5)
        trials.append(_lloyd(points, seeds, short, seed))
    centroids, _ = min(trials, key=lambda trial: trial[1])
    if starts > 1 and iterations > short:
        centroids, _ = _lloyd(points, centroids, iterations - short, seed)
    return centroids + center


def _sample(x: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    if x.shape[0] <= rows:
        return x
    return x[torch.randperm(x.shape[0], generator=generator)[:rows].to(x.device)]


def _lloyd(x: Tensor, seeds: Tensor, iterations: int, seed: int) -> tuple[Tensor, float]:
    """Run faiss's Lloyd iterations; return the centroids and the final sum of squared errors."""
    faiss = import_faiss()
    on_gpu = x.is_cuda and hasattr(faiss, "StandardGpuResources")
    algorithm = faiss.Kmeans(
        x.shape[1],
        seeds.shape[0],
        niter=iterations,
        seed=seed % 2**31,
        gpu=on_gpu,
        min_points_per_centroid=1,
        max_points_per_centroid=x.shape[0],
    )
    algorithm.train(x.cpu().contiguous().numpy(), init_centroids=seeds.cpu().contiguous().numpy())
    centroids = torch.from_numpy(algorithm.centroids.copy()).to(x.device)
    return centroids, float(algorithm.obj[-1])
