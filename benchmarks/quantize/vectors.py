"""The four data sets as float32 matrices: rows to fit on, and rows held out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.development_data import development_file, prepare_images

__all__ = ["DATA", "Vectors", "load_vectors"]

COMPONENTS, SPREAD = 200, 0.3
TILE = 8


@dataclass(frozen=True)
class Vectors:
    """A data set.

    Attributes:
        train: Rows to fit on, shape (N, dim), float32.
        held_out: Rows that no quantizer has seen, shape (M, dim), float32.
    """

    train: NDArray[np.float32]
    held_out: NDArray[np.float32]


def load_vectors(data: str, work: Path, *, rows: int | None = None) -> Vectors:
    """Return a data set.

    Args:
        data: A key of `DATA`.
        work: Folder of decoded images.
        rows: Rows to fit on, and a fifth as many held out; None keeps all.
    """
    train, held_out = DATA[data][1](work)
    held_out_rows = rows and rows // 5
    return Vectors(*(_float(part) for part in (train[:rows], held_out[:held_out_rows])))


def _float(x: NDArray) -> NDArray[np.float32]:
    return np.ascontiguousarray(x, dtype=np.float32)


def _mixture(_: Path, dim: int = 128) -> tuple[NDArray, NDArray]:
    """50,000 and 10,000 draws of Gaussians, each with axes of its own and deviations i^-0.5."""
    rng = np.random.default_rng(0)
    deviations = np.arange(1, dim + 1) ** -0.5
    centers = SPREAD * rng.normal(size=(COMPONENTS, dim))
    component = rng.integers(COMPONENTS, size=60_000)
    x = rng.normal(size=(len(component), dim)) * deviations
    for number, center in enumerate(centers):
        axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        own = component == number
        x[own] = x[own] @ axes + center
    return x[:50_000], x[50_000:]


def _minilm(_: Path) -> tuple[NDArray, NDArray]:
    """Embeddings of item titles, 1,101 of the 12,101 drawn to be held out."""
    x = np.load(development_file("data/recsys/beauty/item_embeddings.npy"))
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[1101:]], x[order[:1101]]


def _fashion(work: Path) -> tuple[NDArray, NDArray]:
    """Images as vectors of 784 pixels in [0, 1]."""
    images = np.load(prepare_images("fashion", work))
    train, test = (images[name].reshape(-1, 784) for name in ("x_train", "x_test"))
    return train / np.float32(255), test / np.float32(255)


def _patches(work: Path) -> tuple[NDArray, NDArray]:
    """Tiles of 8×8×3 pixels in [0, 1] of small photos."""
    images = np.load(prepare_images("cifar", work))
    train, test = _tiles(images["x_train"])[:100_000], _tiles(images["x_test"])[:20_000]
    return train / np.float32(255), test / np.float32(255)


def _tiles(images: NDArray) -> NDArray:
    """Cut images (N, H, W, C) into rows of TILE × TILE × C pixels, image by image."""
    count, height, width, channels = images.shape
    grid = images.reshape(count, height // TILE, TILE, width // TILE, TILE, channels)
    return grid.swapaxes(2, 3).reshape(-1, TILE * TILE * channels)


DATA: dict[str, tuple[str, Callable[[Path], tuple[NDArray, NDArray]]]] = {
    "mixture": ("Gaussian mixture", _mixture),
    "minilm": ("MiniLM titles", _minilm),
    "fashion": ("Fashion-MNIST", _fashion),
    "patches": ("Photo patches", _patches),
}
"""Title and source of each data set."""
