"""Codes for items by given codebooks, and the error they leave, a few vectors at a time."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rqtoolkit.functional.progress import Progress
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids.collisions import Collisions, place_new
from rqtoolkit.semantic_ids.inputs import Embeddings
from rqtoolkit.semantic_ids.standardize import Standardization

__all__ = ["assign_codes", "decode_codes", "raw_codes", "squared_error"]


class _StandardRows:
    """Rows of embeddings, standardised when they are asked for: no second copy of a catalogue."""

    ndim = 2

    def __init__(self, embeddings: Embeddings, standardization: Standardization) -> None:
        self.shape = embeddings.rows, embeddings.dim
        self._embeddings, self._standardization = embeddings, standardization

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._standardization.apply(self._embeddings.take(rows))


def raw_codes(
    quantizer: Quantizer, standardization: Standardization, embeddings: Embeddings
) -> NDArray[np.int64]:
    """Encode vectors, whatever codes others have; shape (N, depth)."""
    device = _device(quantizer)
    codes = [
        quantizer.encode(torch.from_numpy(standardization.apply(chunk)).to(device)).cpu().numpy()
        for chunk in embeddings.chunks()
    ]
    return np.concatenate(codes)


def assign_codes(
    quantizer: Quantizer,
    standardization: Standardization,
    embeddings: Embeddings,
    ranks: NDArray[np.int64],
    *,
    collisions: Collisions,
    taken: NDArray[np.int64] | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Give every item codes, as the way of dealing with collisions says.

    Args:
        quantizer: Of standardised vectors.
        standardization: What it was fitted with.
        embeddings: The items' vectors.
        ranks: Place of each row among the sorted item ids, which settles ties.
        collisions: "match", "token" or "allow".
        taken: Codes that other items have or had, shape (M, length); None where there are none.
        limit: Items that matching should give no first code more of.
        progress: Told of each stretch of work.

    Returns:
        Codes, shape (N, length).

    Raises:
        ConfigError: If collisions is unknown.
        DataError: If there are fewer free codes than items to match.
    """
    if taken is None:
        length = len(quantizer.codebook_sizes) + (collisions == "token")
        taken = np.empty((0, length), np.int64)
    rows: Any = _StandardRows(embeddings.in_memory(), standardization)
    return place_new(quantizer, rows, ranks, taken, collisions, limit=limit, progress=progress)


def decode_codes(
    quantizer: Quantizer, standardization: Standardization, codes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return what codes (..., d) stand for, in input units, shape (..., dim)."""
    with torch.no_grad():
        vectors = quantizer.decode(torch.from_numpy(codes).to(_device(quantizer)))
    return standardization.restore(vectors.cpu().numpy())


def squared_error(
    quantizer: Quantizer,
    standardization: Standardization,
    embeddings: Embeddings,
    codes: NDArray[np.int64],
) -> float:
    """Return the squared error in input units, summed over dim, averaged over vectors."""
    total, done = 0.0, 0
    for chunk in embeddings.chunks():
        error = decode_codes(quantizer, standardization, codes[done : done + len(chunk)]) - chunk
        total += float(np.einsum("nd,nd->n", error, error).sum(dtype=np.float64))
        done += len(chunk)
    return total / done


def _device(quantizer: Quantizer) -> torch.device:
    return next(iter(quantizer.state_dict().values())).device
