"""The one door to image data: a source, a resolution, and what is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imagegen.images import ImageSet
from imagegen.readers import fit_images, read_digits, read_folder, read_npz
from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.progress import Progress

__all__ = ["load_images"]

SOURCES = ("digits", "npz", "folder")
FITS = ("resize", "pad")


def load_images(
    *,
    source: str,
    path: str | Path | None = None,
    resolution: int,
    fit: str = "resize",
    held_out: float | int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Load a data set at one square resolution and split it into training and held-out images.

    - "digits": the 1,797 handwritten digits (8x8) that scikit-learn carries.
    - "npz": arrays `x_train`, `x_test` of uint8 (N, H, W) or (N, H, W, C), and with classes
      `y_train`, `y_test` (N,) and `class_names`.
    - "folder": image files, directly in the folder or in one subfolder for each class.

    Args:
        source: "digits", "npz" or "folder".
        path: The file or folder; None for "digits".
        resolution: Height and width of the images returned.
        fit: How images reach the resolution. "resize" cuts out the central square and resizes it
            with Pillow's bicubic filter, which averages when it makes images smaller. "pad" leaves
            every pixel as it is and puts black around it: the choice for small images just under
            a power of two (28 to 32), where resizing would only blur.
        held_out: A share between 0 and 1, or a number of images, stratified by class. Of a source
            with its own test images ("npz") it is how much of those to keep. None: a fifth, and
            all of the source's own test images.
        seed: Fixes which images are held out.
        progress: Called as progress(description, done, total).

    Returns:
        Training and held-out images.

    Raises:
        ConfigError: If source, fit, resolution, held_out or path is not usable.
        ArtifactError: If the file or folder is missing, unreadable or truncated.
        DataError: If its arrays or images are not what is described above.
    """
    if source not in SOURCES:
        raise ConfigError(
            f"load_images: source={source!r} is not known; got none of {', '.join(SOURCES)}. "
            "Use one of these."
        )
    if fit not in FITS:
        raise ConfigError(f"load_images: fit={fit!r} is not known. Use 'resize' or 'pad'.")
    if resolution < 1:
        raise ConfigError(f"load_images: resolution={resolution} must be at least 1. Use e.g. 32.")
    if (path is None) != (source == "digits"):
        rule = "takes no path" if path is not None else "needs a path"
        raise ConfigError(
            f"load_images: source={source!r} {rule}; got path={path}. Mend either of the two."
        )
    if source == "npz":
        train, test = read_npz(Path(path or ""))
        if held_out is not None:
            test = test.subset(_stratified(test, held_out, seed))
        return fit_images(train, resolution, fit), fit_images(test, resolution, fit)
    if source == "digits":
        everything = fit_images(read_digits(), resolution, fit)
    else:
        everything = read_folder(Path(path or ""), resolution, fit, progress)
    chosen = _stratified(everything, 0.2 if held_out is None else held_out, seed)
    kept = np.setdiff1d(np.arange(len(everything)), chosen)
    if not len(kept):
        raise ConfigError(
            f"load_images: held_out={held_out} leaves no training images of {len(everything)}. "
            "Hold out fewer."
        )
    return everything.subset(kept), everything.subset(chosen)


def _stratified(images: ImageSet, held_out: float | int, seed: int) -> np.ndarray:
    """Return sorted rows of a sample with the classes' own proportions.

    Seats go by largest remainder, so that the total is exact: the share rounded up, as
    scikit-learn's train_test_split does (a fifth of 1,797 is 360).
    """
    is_share = isinstance(held_out, float) and 0 < held_out < 1
    total = int(np.ceil(round(held_out * len(images), 6))) if is_share else int(held_out)
    if (total != held_out and not is_share) or not 1 <= total <= len(images):
        raise ConfigError(
            f"load_images: held_out={held_out} must be a share between 0 and 1 or a number of "
            f"images up to {len(images)}. Change it, or give more images."
        )
    labels = np.zeros(len(images), np.int64) if images.labels is None else images.labels
    classes, counts = np.unique(labels, return_counts=True)
    quotas = counts * total / len(images)
    seats = np.floor(quotas).astype(int)
    remainder_first = np.argsort(seats - quotas, kind="stable")
    seats[remainder_first[: total - seats.sum()]] += 1
    generator = np.random.default_rng(seed)
    rows = [
        generator.permutation(np.flatnonzero(labels == name))[:number]
        for name, number in zip(classes, seats, strict=True)
    ]
    return np.sort(np.concatenate(rows))
