"""K-means: greedy k-means++ seeding handed to faiss's Lloyd iterations.

faiss's own k-means++ proved no better than random starts on real embeddings; trying several
candidates for each seed and keeping the one that lowers the error most, as scikit-learn does, is.
"""

from collections.abc import Iterator, Sequence
from math import log
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from rqtoolkit.errors import DataError, MissingDependencyError
from rqtoolkit.functional.assign import chunk_slices

__all__ = ["greedy_kmeans_plus_plus", "import_faiss", "kmeans"]

_POINTS_PER_CODE = 256  # Lloyd on more than this per centroid costs time and gains nothing visible
_SEEDS_PER_STEP = 1 / 8
_TILE_BYTES = 2**22  # fits a cache; four times as much was a fifth slower
_LEAST_DIM, _MOST_SUBSPACES = 8, 5
_AXES_ROWS = 2**14
_SEEDING_COST = 2.0  # of a distance in seeding, in those of a Lloyd iteration (measured, CPU)


def import_faiss() -> ModuleType:
    """Import faiss, or say which package provides it.

    Raises:
        MissingDependencyError: If neither faiss-cpu nor faiss-gpu is installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "rqtoolkit: faiss is not installed; k-means and faiss indexes need it. Install one of "
            "them (never both, they provide the same module): pip install 'rqtoolkit[cpu]' or "
            "'rqtoolkit[gpu]'."
        ) from error
    return faiss


def greedy_kmeans_plus_plus(x: Tensor, codebook_size: int, *, generator: torch.Generator) -> Tensor:
    """Choose `codebook_size` rows of x as seeds, spread by squared distance.

    Each step draws candidates with probability proportional to the squared distance from the
    seeds so far and keeps the one that lowers the total most. Once there are 16 seeds, a step adds
    an eighth of their number instead of one: the distances to all candidates are then one matrix
    product, several times faster, with no loss measured on real embeddings.

    Args:
        x: Vectors, shape (N, dim), N at least codebook_size.
        codebook_size: Seeds to choose.
        generator: Source of chance, on the CPU.

    Returns:
        Seeds, shape (codebook_size, dim): rows of x.

    References:
        Arthur & Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007, section
        5 (greedy variant). https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
    """
    candidates = _candidates(codebook_size)
    norms = x.square().sum(dim=1)
    nearest = torch.full_like(norms, torch.inf)
    chosen = torch.randint(x.shape[0], (1,), generator=generator).to(x.device)
    _lower_to_seeds(nearest, x, norms, chosen)
    while len(chosen) < codebook_size:
        seeds = min(max(1, int(len(chosen) * _SEEDS_PER_STEP)), codebook_size - len(chosen))
        drawn = _draw_by_distance(nearest, seeds * candidates, generator)
        totals = _totals_with(nearest, x, norms, drawn)
        # Candidate i competes for place i mod seeds, also where rows ran short of a full set.
        winners = [int(totals[place::seeds].argmin()) * seeds + place for place in range(seeds)]
        added = drawn[winners]
        _lower_to_seeds(nearest, x, norms, added)
        chosen = torch.cat([chosen, added])
    return x[chosen]


def _candidates(codebook_size: int) -> int:
    """Candidates per seed, scikit-learn's number."""
    return 2 + int(log(codebook_size))


def _capped_distances(nearest: Tensor, x: Tensor, norms: Tensor, seeds: Tensor) -> Iterator[Tensor]:
    """Yield min(‖x − seed‖², nearest) in tiles of (seeds, some rows of x)."""
    doubled, seed_norms = x[seeds] * -2, norms[seeds, None]
    for rows in chunk_slices(x.shape[0], len(seeds) * x.element_size(), _TILE_BYTES):
        tile = torch.addmm(seed_norms, doubled, x[rows].T).add_(norms[rows])
        yield torch.minimum(tile, nearest[rows], out=tile)


def _totals_with(nearest: Tensor, x: Tensor, norms: Tensor, candidates: Tensor) -> Tensor:
    """Total squared distance (candidates,) that would remain with each candidate added."""
    tiles = _capped_distances(nearest, x, norms, candidates)
    return sum((tile.sum(dim=1) for tile in tiles), start=norms.new_zeros(len(candidates)))


def _lower_to_seeds(nearest: Tensor, x: Tensor, norms: Tensor, seeds: Tensor) -> None:
    """Let `nearest` (N,) take the new seeds into account, in place."""
    tiles = [tile.amin(dim=0) for tile in _capped_distances(nearest, x, norms, seeds)]
    torch.clamp(torch.cat(tiles), min=0, out=nearest)


def _draw_by_distance(nearest: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw different rows with probability proportional to `nearest`."""
    weights = nearest.cpu()
    if not bool(weights.any()):  # every row is a seed already
        weights = torch.ones_like(weights)
    count = min(count, len(weights))
    return torch.multinomial(weights, count, generator=generator).to(nearest.device)


def kmeans(
    x: Tensor,
    codebook_size: int,
    *,
    iterations: int = 25,
    starts: int = 1,
    seed: int = 0,
) -> Tensor:
    """Cluster vectors by Lloyd's algorithm in faiss, from greedy k-means++ seeds.

    Vectors of many dimensions are clustered in their leading principal subspace first, then in one
    of twice as many dimensions, and so on: most iterations are done where they are cheap, and local
    minima are fewer there. With several starts, each runs a fifth of the first iterations,
    and the best goes on. At most 256 vectors per codeword take part, drawn at random, in the
    seeding only as many as keep it cheaper than the Lloyd iterations.

    Args:
        x: Vectors, shape (N, dim), on any device; computed in float32.
        codebook_size: Number of centroids, at most N.
        iterations: Lloyd iterations, over all subspaces.
        starts: Independent seedings to choose from.
        seed: Fixes the result.

    Returns:
        Centroids, shape (codebook_size, dim), float32, on the device of x.

    Raises:
        DataError: If there are fewer vectors than codewords.
        MissingDependencyError: If faiss is not installed.

    References:
        Liu et al., "Improved Residual Vector Quantization for High-dimensional Approximate Nearest
        Neighbor Search", 2015 (subspaces that grow).
        https://arxiv.org/abs/1509.05195
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
    dims = _subspaces(x.shape[1])
    first, *rest = _shares(iterations, dims)
    if len(dims) == 1:
        return center + _first_clusters(points, codebook_size, first, starts, generator, seed)
    axes = _principal_axes(points)[:, : dims[-2]]
    turned = points @ axes
    centroids = _first_clusters(
        turned[:, : dims[0]].contiguous(), codebook_size, first, starts, generator, seed
    )
    for dim, share in zip(dims[1:-1], rest[:-1], strict=True):
        wider = F.pad(centroids, (0, dim - centroids.shape[1]))
        centroids, _ = _lloyd(turned[:, :dim].contiguous(), wider, share, seed)
    centroids, _ = _lloyd(points, centroids @ axes.T, rest[-1], seed)
    return center + centroids


def _first_clusters(
    points: Tensor,
    codebook_size: int,
    iterations: int,
    starts: int,
    generator: torch.Generator,
    seed: int,
) -> Tensor:
    """Run Lloyd's algorithm from the best of several seedings."""
    short = iterations if starts == 1 else max(1, iterations // 5)
    distances = len(points) * (short + (iterations - short) / starts)
    pool_size = max(codebook_size, int(distances / _SEEDING_COST / _candidates(codebook_size)))
    trials = []
    for _ in range(starts):
        pool = _sample(points, pool_size, generator)
        seeds = greedy_kmeans_plus_plus(pool, codebook_size, generator=generator)
        trials.append(_lloyd(points, seeds, short, seed))
    centroids, _ = min(trials, key=lambda trial: trial[1])
    if iterations > short:
        centroids, _ = _lloyd(points, centroids, iterations - short, seed)
    return centroids


def _subspaces(dim: int) -> list[int]:
    """Dimensions of the subspaces, each half of the next."""
    dims = [dim]
    while dims[0] // 2 >= _LEAST_DIM and len(dims) < _MOST_SUBSPACES:
        dims.insert(0, dims[0] // 2)
    return dims


def _shares(iterations: int, dims: Sequence[int]) -> list[int]:
    """Iterations in each subspace: the more, the cheaper they are, with the root of the price."""
    weights = [dim**-0.5 for dim in dims]
    return [max(1, round(iterations * weight / sum(weights))) for weight in weights]


def _principal_axes(points: Tensor) -> Tensor:
    """Principal axes of centred points, shape (dim, dim), a column each, the widest first."""
    some = points[:_AXES_ROWS]
    return torch.linalg.eigh(some.T @ some).eigenvectors.flip(1)


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
