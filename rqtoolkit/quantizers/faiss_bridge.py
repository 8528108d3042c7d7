"""`to_faiss` and `from_faiss`, methods of quantizers whose codes name codewords to sum."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.errors import ConfigError, ShapeError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.functional.kmeans import kmeans
from rqtoolkit.io.faiss_index import add_codes, read_index, residual_index, residual_tables

if TYPE_CHECKING:
    from rqtoolkit.quantizers.grouped import GroupedResidualQuantizer
    from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["from_faiss", "to_faiss"]

_VECTORS_PER_LIST = 256  # as faiss, to place the centroids of an inverted file


@torch.no_grad()
def to_faiss(
    quantizer: "ResidualQuantizer | GroupedResidualQuantizer",
    vectors: NDArray | Tensor | None = None,
    *,
    codes: NDArray | Tensor | None = None,
    metric: Literal["l2", "ip"] = "l2",
    norms: bool = False,
    lists: int | None = None,
    seed: int = 0,
) -> Any:
    """Make a faiss index that holds the quantizer, and vectors or codes to search.

    Its codes are those of `pack_codes` bit for bit (an inverted file's `sa_encode` puts the number
    of the list before them), and `index.sa_decode` is `decode`. Vectors are encoded here, with the
    quantizer's beam and penalties; what `index.add` encodes later, faiss encodes for the least
    squared error, with that beam and no penalties, nor what `similarity="cosine"` or
    `codebook_dim` would choose. A group's codewords become vectors that are 0 elsewhere (turned
    back, where there is a rotation, so that decoding is equal to rounding). For more vectors than
    memory holds, add codes chunk by chunk with `rqtoolkit.io.faiss_index.add_codes`; `write_index`
    there writes a file.

    Args:
        quantizer: The quantizer; every codebook size a power of two.
        vectors: Vectors to encode and add, as for `encode`; also numpy.
        codes: Codes to add, whole stacks, in place of encoding the vectors.
        metric: What `index.search` ranks by: "l2" or "ip" (inner product).
        norms: Store four bytes more a vector, with which "l2" searches by table, tens of times
            faster; without them the codes alone are stored. Inner products always go by table.
        lists: Make an inverted file of so many lists, placed by k-means on the vectors, or on what
            the codes decode to. Set `index.nprobe` to the lists a search visits: faiss's default
            is 1. None for an exhaustive search.
        seed: Fixes the lists.

    Returns:
        `faiss.IndexResidualQuantizer`, or `faiss.IndexIVFResidualQuantizer` with lists.

    Raises:
        ConfigError: If a codebook size is no power of two, an argument is out of range, or there is
            nothing to place lists on.
        ShapeError: If there are not as many vectors as codes, or their sizes do not fit.
        DataError: If vectors are not finite, or codes out of range.
        MissingDependencyError: If faiss is not installed.
    """
    flat = None
    if vectors is not None:
        vectors = torch.as_tensor(vectors)
        vectors = vectors if vectors.is_floating_point() else vectors.float()
        flat = quantizer._flatten(vectors, "to_faiss")[0]
        codes = quantizer.encode(vectors) if codes is None else codes
    if codes is not None:
        codes = torch.as_tensor(codes)
        length = len(quantizer.codebook_sizes)
        if codes.ndim == 0 or codes.shape[-1] != length:
            raise ShapeError(
                f"{quantizer._name('to_faiss')}: codes has to be (..., {length}), whole "
                f"stacks; got shape {tuple(codes.shape)}."
            )
        codes = codes.reshape(-1, length)
    centroids = None
    if lists is not None:
        centroids = _centroids(quantizer, flat, codes, lists, metric, seed)
    index = residual_index(
        [table.cpu().numpy() for table in quantizer._codewords()],
        metric=metric,
        beam=quantizer.beam,
        norms=norms,
        centroids=centroids,
    )
    if codes is not None:
        add_codes(index, codes.cpu().numpy(), None if flat is None else flat.cpu().numpy())
    return index


def from_faiss(cls: type["ResidualQuantizer"], index: Any) -> "ResidualQuantizer":
    """Take over a residual quantizer trained in faiss, in eval mode.

    `decode` then equals the index's `sa_decode`, and `beam` is its `max_beam_size`. Rotations and
    PCA in front of the quantizer (`faiss.IndexPreTransform`) are folded into the codebooks. The
    vectors that the index holds stay there.

    Args:
        cls: The class.
        index: `faiss.IndexResidualQuantizer`, `faiss.ResidualQuantizer`, an
            `IndexIVFResidualQuantizer` with by_residual off, one of them in an `IndexIDMap` or
            `IndexPreTransform`; or the path of such an index.

    Returns:
        A quantizer.

    Raises:
        ConfigError: If the index is not trained, or not of these.
        ArtifactError: If the file is missing, damaged or foreign.
        MissingDependencyError: If faiss is not installed.
    """
    tables, beam = residual_tables(read_index(index) if isinstance(index, str | Path) else index)
    sizes = [len(table) for table in tables]
    with torch.random.fork_rng(devices=[]):
        quantizer = cls(
            tables[0].shape[1],
            len(tables),
            sizes if len(set(sizes)) > 1 else sizes[0],
            beam=beam,
        )
    padded = np.zeros((len(tables), max(sizes), quantizer.dim), dtype=np.float32)
    for level, table in enumerate(tables):
        padded[level, : sizes[level]] = table
    # faiss trains on up to 256 vectors a codeword; online training goes on from such counts.
    quantizer.state.set_tables(torch.from_numpy(padded), vectors=256 * max(sizes))
    return quantizer.eval()


def _centroids(
    quantizer: "ResidualQuantizer | GroupedResidualQuantizer",
    vectors: Tensor | None,
    codes: Tensor | None,
    lists: int,
    metric: str,
    seed: int,
) -> NDArray[np.float32]:
    """Place the lists of an inverted file by k-means; on directions, for inner products."""
    where = quantizer._name("to_faiss")
    check_count(where, "lists", lists)
    if codes is None:
        raise ConfigError(f"{where}: lists={lists} are placed on vectors or codes. Pass some.")
    if len(codes) < lists:
        raise ConfigError(
            f"{where}: lists={lists} needs at least as many vectors; got {len(codes)}. Ask for "
            "fewer, about the square root of their number."
        )
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(codes), generator=generator)[: _VECTORS_PER_LIST * lists]
    sample = quantizer._sum(codes[rows].long()) if vectors is None else vectors[rows]
    if metric == "ip":
        sample = torch.nn.functional.normalize(sample)
    centroids = kmeans(sample, lists, seed=seed)
    if metric == "ip":
        centroids = torch.nn.functional.normalize(centroids)
    return centroids.cpu().numpy()
