"""Where the development data lie, and the two image sets as the .npz files that a run reads."""

import io
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from rqtoolkit.io.atomic import atomic_path

__all__ = ["development_file", "prepare_images"]

FILES = {"fashion": "fashion_mnist_20k.npz", "cifar": "cifar10_10k_jpeg.npz"}


def development_file(relative: str) -> Path:
    """Return a file of the folder `RQTOOLKIT_TEST_DATA`, by default `../shared` from the root."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("RQTOOLKIT_TEST_DATA", beside)) / relative


def prepare_images(data: str, folder: Path, *, rows: int | None = None) -> Path:
    """Write the images of a data set as one .npz, where they are not there yet.

    Args:
        data: "fashion" or "cifar".
        folder: Where the file goes.
        rows: Training images to keep, the first of the file; None keeps all.

    Returns:
        The file, with x_train, y_train, x_test, y_test and class_names.
    """
    path = folder / (f"{data}.npz" if rows is None else f"{data}-{rows}.npz")
    if path.exists():
        return path
    arrays = dict(np.load(development_file(f"data/images/{FILES[data]}")))
    for part in ("train", "test"):
        if f"jpeg_{part}" in arrays:
            bounds = arrays.pop(f"offsets_{part}")
            arrays[f"x_{part}"] = _decode(arrays.pop(f"jpeg_{part}").tobytes(), bounds)
    arrays |= {name: arrays[name][:rows] for name in ("x_train", "y_train")}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    return path


def _decode(jpeg: bytes, bounds: np.ndarray) -> np.ndarray:
    """Decode JPEG files laid end to end, image i at bytes bounds[i] to bounds[i+1]."""
    files = (io.BytesIO(jpeg[start:stop]) for start, stop in pairwise(bounds))
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
