"""Read images from files and bring them to one resolution."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from imagegen.images import ImageSet
from rqtoolkit.errors import ArtifactError, DataError, ShapeError
from rqtoolkit.functional.progress import Progress, report

__all__ = ["fit_images", "read_digits", "read_folder", "read_npz"]

MOST_CLASSES = 100_000  # labels beyond are a mistake, and one name for each would fill the memory
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

_16_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_digits() -> ImageSet:
    """Return the 1,797 handwritten digits of scikit-learn, 8x8, their 17 levels spread over 255."""
    from sklearn.datasets import load_digits  # takes half a second; only this source needs it

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return ImageSet(images, digits.target.astype(np.int64), tuple("0123456789"))


def fit_images(images: ImageSet, resolution: int, fit: str) -> ImageSet:
    """Bring a set to (resolution, resolution) by the rule `fit` of `load_images`.

    Raises:
        DataError: If padding would have to make images smaller.
    """
    if images.resolution == (resolution, resolution):
        return images
    fitted = np.stack(
        [_fit_image(image, resolution, fit, "load_images") for image in images.images]
    )
    return ImageSet(fitted, images.labels, images.class_names)


def _fit_image(image: np.ndarray, resolution: int, fit: str, name: str) -> np.ndarray:
    """Bring one image (H, W, C) to (resolution, resolution, C)."""
    height, width, channels = image.shape
    if fit == "pad":
        if max(height, width) > resolution:
            raise DataError(
                f"load_images: fit='pad' cannot make an image smaller; {name} is {height}x{width}, "
                f"resolution={resolution}. Use fit='resize' or a larger resolution."
            )
        out = np.zeros((resolution, resolution, channels), np.uint8)
        top, left = (resolution - height) // 2, (resolution - width) // 2
        out[top : top + height, left : left + width] = image
        return out
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side].astype(np.float32)
    # Each channel in floating point: Pillow's 8-bit path rounds between its two passes.
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(square[..., channel])).resize(
                (resolution, resolution), Image.Resampling.BICUBIC
            )
        )
        for channel in range(channels)
    ]
    return np.rint(np.clip(np.stack(planes, axis=-1), 0, 255)).astype(np.uint8)


def read_npz(path: Path) -> tuple[ImageSet, ImageSet]:
    """Read training and test images from an .npz archive, at the size they have.

    Raises:
        ArtifactError: If the file is missing, truncated or not an .npz archive.
        DataError: If arrays are missing or not what `load_images` describes.
    """
    if not path.is_file():
        raise ArtifactError(f"load_images: path={path} is not a file. Check the path.")
    try:
        with path.open("rb") as stream:  # np.load leaves its own file open where it fails
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array (.npy)")
            arrays = {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(
            f"load_images: path={path} cannot be read as an .npz archive without pickles; "
            f"got {type(error).__name__}: {error}. Write it with np.savez(path, x_train=…, …)."
        ) from None
    missing = [name for name in ("x_train", "x_test") if name not in arrays]
    if "y_train" in arrays or "y_test" in arrays:
        missing += [name for name in ("y_train", "y_test") if name not in arrays]
    if missing:
        raise DataError(
            f"load_images: {path} lacks {', '.join(missing)}; got {', '.join(arrays) or 'nothing'}."
            " Save x_train and x_test, and y_train and y_test for images with classes."
        )
    names = None
    if "y_train" in arrays:
        number = max(_count_classes(path, arrays, name) for name in ("y_train", "y_test"))
        names = tuple(str(name) for name in arrays.get("class_names", np.arange(number)))
    return _npz_part(path, arrays, "train", names), _npz_part(path, arrays, "test", names)


def _count_classes(path: Path, arrays: dict[str, np.ndarray], name: str) -> int:
    """Return the least number of classes that covers an array of labels."""
    labels = arrays[name]
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"load_images: {name} of {path} must be integers from 0; got {labels.dtype}. Number "
            f"the classes."
        )
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, -1)
    if low < 0 or high >= MOST_CLASSES:
        raise DataError(
            f"load_images: {name} of {path} must be integers from 0 to {MOST_CLASSES - 1}; got "
            f"{low} to {high}. Number the classes."
        )
    return high + 1


def _npz_part(
    path: Path, arrays: dict[str, np.ndarray], part: str, names: tuple[str, ...] | None
) -> ImageSet:
    images = arrays[f"x_{part}"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise DataError(
            f"load_images: x_{part} of {path} must be uint8 (N, H, W) or (N, H, W, C) and not "
            f"empty; got {images.dtype} {images.shape}. Save pixel values 0 to 255 as uint8."
        )
    images = images[..., None] if images.ndim == 3 else images
    labels = None if names is None else arrays[f"y_{part}"].astype(np.int64)
    try:
        return ImageSet(images, labels, names)
    except (DataError, ShapeError) as error:
        reason = str(error).removeprefix("ImageSet: ")
        raise type(error)(f"load_images: the {part} part of {path}: {reason}") from None


def read_folder(path: Path, resolution: int, fit: str, progress: Progress | None) -> ImageSet:
    """Read the images of a folder, or of its class folders, at one resolution.

    A set is greyscale where every file is, otherwise RGB; transparency is dropped.

    Raises:
        ArtifactError: If the folder is missing or any image cannot be read; the image is named.
        DataError: If there are no images, or class folders and loose images are mixed.
    """
    if not path.is_dir():
        raise ArtifactError(f"load_images: path={path} is not a folder. Check the path.")
    files = _image_files(path)
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = {folder.name: _image_files(folder) for folder in folders}
    if not files and not any(classes.values()):
        raise DataError(
            f"load_images: path={path} holds no images; got neither {', '.join(EXTENSIONS[:3])} … "
            "files nor subfolders with any. Point to a folder of images."
        )
    empty = [name for name, members in classes.items() if not members]
    if classes and not files and empty:
        raise DataError(
            f"load_images: path={path} has class folders without images: {', '.join(empty[:3])}. "
            "Fill or remove them."
        )
    if files and any(classes.values()):
        raise DataError(
            f"load_images: path={path} holds {len(files)} images beside class folders; "
            f"got {files[0].name} and {next(iter(classes))}/. Move them into class folders."
        )
    if files:
        labels, names = None, None
    else:
        files = [file for members in classes.values() for file in members]
        counts = [len(members) for members in classes.values()]
        labels, names = np.repeat(np.arange(len(counts)), counts).astype(np.int64), tuple(classes)
    return ImageSet(_decode(files, resolution, fit, progress), labels, names)


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")
    )


def _pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image file, uint8 (H, W) or (H, W, 3)."""
    if image.mode in _16_BITS:  # Pillow would clip all that is over 255 to white
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"levels from {levels.min()} to {levels.max()}, not 0 to 65535")
        return np.rint(levels / 257).astype(np.uint8)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _decode(files: list[Path], resolution: int, fit: str, progress: Progress | None) -> np.ndarray:
    """Read files to (N, resolution, resolution, C); C is 1 only where every file is grey."""
    images, broken = [], []
    for done, file in enumerate(files, start=1):
        report(progress, "reading images", done, len(files))
        try:
            with Image.open(file) as image:
                grey = image.mode in ("1", "L", *_16_BITS)
                pixels = _pixels(image)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            broken.append((file, f"{type(error).__name__}: {error}"))
            continue
        pixels = pixels[..., None] if grey else pixels
        images.append(_fit_image(pixels, resolution, fit, str(file)))
    if broken:
        first, reason = broken[0]
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ArtifactError(
            f"load_images: {first}{others} cannot be read as an image; got {reason}. "
            "Mend or remove it."
        )
    channels = max(image.shape[2] for image in images)
    return np.stack([np.broadcast_to(i, (*i.shape[:2], channels)) for i in images])
