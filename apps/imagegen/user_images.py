"""Images that a command is given: to reconstruct, to complete, or to score."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from imagegen.data import read_images
from imagegen.data.decoding import choose_square, decode_image, fit_pixels, set_channels
from imagegen.images import UnreadableImageError
from rqtoolkit.errors import ArtifactError, DataError
from rqtoolkit.functional.progress import Progress, report

__all__ = ["list_images", "read_npz_images", "read_pixels", "read_user_images"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
WRITTEN = ("codes.npy", "sampling.json", "errors.json")  # beside a grid.png of ours
ARRAYS = ("arr_0", "x_test", "images")


def read_user_images(
    sources: Sequence[Path],
    *,
    resolution: int,
    channels: int,
    fit: str = "resize",
    progress: Progress | None = None,
) -> np.ndarray:
    """Read images of any size and bring each to one square size.

    Args:
        sources: Image files; folders, read with all that is in them, whatever their subfolders are
            called; and .npz archives, as `imagegen.data.read_images` takes them.
        resolution: Height and width to reach.
        channels: 1 or 3; colour becomes grey by luma, grey three equal channels.
        fit: "resize" cuts out the central square and resizes it (bicubic, averaging); "pad" puts
            black around images that are smaller.
        progress: Called as progress(description, done, total).

    Returns:
        Images, shape (N, resolution, resolution, channels), uint8.

    Raises:
        ArtifactError: If a source is missing or cannot be read; it is named.
        DataError: If there are no images, or one is too large to pad.
    """
    sets = [
        read_images(source, resolution=resolution, fit=fit, progress=progress).images
        if source.is_file() and source.suffix.lower() == ".npz"
        else _read_files(list_images(source), resolution, fit, progress)
        for source in sources
    ]
    return np.stack([set_channels(image, channels) for images in sets for image in images])


def _read_files(
    files: Sequence[Path], resolution: int, fit: str, progress: Progress | None
) -> Iterator[np.ndarray]:
    """Yield the images of files, each with its own channels."""
    for done, file in enumerate(files, start=1):
        pixels = read_pixels(file)
        square = choose_square(
            *pixels.shape[:2], crop="center", resolution=resolution, generator=None
        )
        yield fit_pixels(pixels, resolution, fit=fit, square=square, name=str(file))
        report(progress, "reading images", done, len(files))


def list_images(source: Path) -> list[Path]:
    """Return the image files that a path names: itself, or all in a folder, sorted.

    Subfolders are no classes here. Left out are hidden files, and the grid.png that `sample`,
    `reconstruct` or `decompress` wrote beside their images.

    Raises:
        ArtifactError: If the path is missing.
        DataError: If the folder has no images.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ArtifactError(f"images: {source} is neither a file nor a folder. Check the path.")
    files = sorted(
        path
        for path in source.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
        and path.is_file()
        and not (path.name == "grid.png" and any((path.parent / n).exists() for n in WRITTEN))
    )
    if not files:
        raise DataError(
            f"images: {source} holds no images; got no {', '.join(EXTENSIONS[:3])} … files. Name a "
            f"folder with some."
        )
    return files


def read_pixels(path: Path) -> np.ndarray:
    """Read one image file as it is, shape (H, W, 1 or 3), uint8.

    Raises:
        ArtifactError: If it is missing or no image.
    """
    try:
        return decode_image(path.read_bytes(), str(path))
    except UnreadableImageError as error:
        raise ArtifactError(
            f"images: {error} cannot be read as an image. Mend or leave it out."
        ) from None
    except OSError as error:
        raise ArtifactError(
            f"images: {path} cannot be read; got {error.strerror or error}. Check the path."
        ) from None


def read_npz_images(path: Path) -> np.ndarray:
    """Read the images of an .npz archive, shape (N, H, W, C), uint8.

    Of an archive that is not compressed they are mapped and read when they are looked at: samples
    may be larger than the memory.

    Raises:
        ArtifactError: If the file is missing, damaged, or needs pickles.
        DataError: If it has no array of images.
    """
    try:
        with path.open("rb") as stream:  # np.load leaves its own file open where it fails
            file = np.load(stream, allow_pickle=False)
            name = next((name for name in ARRAYS if name in file.files), None)
            names = ", ".join(file.files)
            images = None if name is None else _map_array(path, name)
            if images is None and name is not None:
                images = file[name]
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(
            f"images: {path} cannot be read as an .npz archive without pickles; got "
            f"{type(error).__name__}: {error}. Write it with np.savez(path, arr_0=images)."
        ) from None
    if images is None:
        raise DataError(
            f"images: {path} has none of the arrays {', '.join(ARRAYS)}; got {names}. Rename one."
        )
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"images: {name} of {path} must be uint8 (N, H, W) or (N, H, W, 1 or 3); got "
            f"{images.dtype} {images.shape}. Save pixel values 0 to 255 as uint8."
        )
    return images


def _map_array(path: Path, name: str) -> np.ndarray | None:
    """Map an array of an .npz archive into memory; None where it is compressed."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return None
        # The member lies behind its own header of 30 bytes, a name and extra fields.
        file.seek(member.header_offset + 26)
        skipped = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
        file.seek(skipped, 1)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, by_columns, dtype = read(file)
        if by_columns or dtype.hasobject or not np.prod(shape):
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape)
