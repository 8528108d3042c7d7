"""Images that a command is given: to reconstruct, to complete, to compress, or to score."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from imagegen.autoencoder import RQVAE
from imagegen.data.arrays import join_files, reading_npz
from imagegen.data.folders import EXTENSIONS, Files
from imagegen.data.stored import Arrays, Records, StoredImages, read_pixels
from imagegen.data.strings import Strings
from imagegen.images import UnreadableImageError
from imagegen.runs import Run
from rqtoolkit.errors import ArtifactError, DataError
from rqtoolkit.functional.progress import Progress, report

__all__ = [
    "list_images",
    "open_user_images",
    "read_for_run",
    "read_user_images",
    "read_whole_images",
]

WRITTEN = ("codes.npy", "sampling.json", "errors.json")  # beside a grid.png of ours
PIXELS = ("arr_0", "x_test", "images")  # of an archive, the first that is there
JOINED = ("jpeg_test", "offsets_test")


def read_for_run(
    run: Run, autoencoder: RQVAE, sources: Sequence[Path], *, progress: Progress | None = None
) -> np.ndarray:
    """Read images as a run's autoencoder takes them, by the run's rule `data.fit`.

    Args:
        run: The run.
        autoencoder: Its autoencoder.
        sources: As for `read_user_images`, which says what is returned and raised.
        progress: Called as progress(description, done, total).
    """
    return read_user_images(
        sources,
        resolution=autoencoder.resolution,
        channels=autoencoder.image_channels,
        fit=run.config.data.fit,
        progress=progress,
    )


def read_user_images(
    sources: Sequence[Path],
    *,
    resolution: int,
    channels: int,
    fit: str = "resize",
    progress: Progress | None = None,
) -> np.ndarray:
    """Read images of any size and bring each to one square size, as training does.

    Args:
        sources: Files, folders and archives, each as `open_user_images` takes it.
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
    found = []
    for source in sources:
        records = open_user_images(source)
        images = StoredImages(records, np.arange(len(records)), resolution, channels, fit=fit)
        for row in range(len(images)):
            with _unreadable_named():
                found.append(images.read(row))
            report(progress, "reading images", row + 1, len(images))
    return np.stack(found)


def read_whole_images(records: Records) -> np.ndarray:
    """Return images as they are, shape (N, H, W, 1 or 3), uint8; mapped ones stay mapped.

    Raises:
        ArtifactError: If one cannot be read; it is named.
        DataError: If they differ in size or channels.
    """
    if isinstance(records, Arrays):
        return records.images
    found: list[np.ndarray] = []
    for row in range(len(records)):
        with _unreadable_named():
            found.append(read_pixels(records, row))
        if found[row].shape != found[0].shape:
            raise DataError(
                f"images: {records.name(row)} must be of one size with those before it; got "
                f"{found[row].shape} after {found[0].shape}. Leave the others out."
            )
    return np.stack(found)


@contextmanager
def _unreadable_named() -> Iterator[None]:
    try:
        yield
    except UnreadableImageError as error:
        raise ArtifactError(
            f"images: {error} cannot be read as an image. Mend or leave it out."
        ) from None


def open_user_images(source: Path) -> Records:
    """Open the images that a path names, each of its own size.

    Args:
        source: An image file; a folder, as `list_images` reads it; or an .npz archive with pixels
            in `arr_0`, `x_test` or `images`, uint8 (N, H, W) or (N, H, W, 1 or 3), or with image
            files in `jpeg_test` and `offsets_test`, as `imagegen.data.arrays.open_npz` describes.
            Pixels of an archive that is not compressed are mapped and read when they are looked
            at: samples may be larger than the memory.

    Raises:
        ArtifactError: If it is missing, or an archive is damaged or needs pickles.
        DataError: If it holds no images, or arrays are not as above.
    """
    if source.is_file() and source.suffix.lower() == ".npz":
        return _open_archive(source)
    return Files("", Strings.pack(map(str, list_images(source))))


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


def _open_archive(path: Path) -> Records:
    advice = "Write it with np.savez(path, arr_0=images)"
    with reading_npz(path, where="images", advice=advice) as file:
        names = ", ".join(file.files)
        name = next((name for name in PIXELS if name in file.files), None)
        joined = {part: file[part] for part in JOINED if name is None and part in file.files}
        images = None if name is None else _map_array(path, name)
        if images is None and name is not None:
            images = file[name]
    if len(joined) == len(JOINED):
        return join_files(path, joined, "test")
    if images is None:
        raise DataError(
            f"images: {path} has none of the arrays {', '.join(PIXELS)}, nor {' and '.join(JOINED)}"
            f"; got {names or 'nothing'}. Rename one."
        )
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"images: {name} of {path} must be uint8 (N, H, W) or (N, H, W, 1 or 3); got "
            f"{images.dtype} {images.shape}. Save pixel values 0 to 255 as uint8."
        )
    if not images.size:
        raise DataError(f"images: {name} of {path} is empty; got {images.shape}. Save some images.")
    return Arrays(images, f"{path}:{name}")


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
