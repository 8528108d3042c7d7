"""The one door to image data: a source, a resolution, and what is held out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from imagegen.data.arrays import open_digits, open_npz
from imagegen.data.classes import number_classes, stratified_rows
from imagegen.data.databases import open_huggingface, open_lsun
from imagegen.data.folders import open_ffhq, open_folder, open_imagenet
from imagegen.data.lists import open_cc3m, open_list
from imagegen.data.shards import open_webdataset
from imagegen.data.stored import Arrays, StoredImages, Table, count_channels
from imagegen.images import ImageData, ImageSet
from imagegen.settings import CROPS, FITS, SOURCES
from rqtoolkit.errors import ConfigError, DataError
from rqtoolkit.functional.progress import Progress

__all__ = ["MEMORY", "open_images"]

MEMORY = 2**30  # bytes of decoded images; a set under it is decoded once, its held-out images too


def open_images(
    *,
    source: str,
    path: str | Path | None = None,
    resolution: int,
    fit: str = "resize",
    crop: str = "center",
    flip: bool = False,
    held_out: float | int | None = None,
    held_out_path: str | Path | None = None,
    split_seed: int = 0,
    corrupt: float = 0.0,
    image_column: str | None = None,
    label_column: str | None = None,
    text_column: str | None = None,
    progress: Progress | None = None,
) -> tuple[ImageData, ImageSet]:
    """Open a data set at one square resolution, divided into training and held-out images.

    - "digits": the 1,797 handwritten digits (8x8) that scikit-learn carries.
    - "npz": arrays `x_train`, `x_test` of pixels, or image files in `jpeg_train`, `jpeg_test`; see
      `imagegen.data.arrays.open_npz`.
    - "folder": image files, directly in the folder or in one subfolder for each class.
    - "list": a text file with a path a line, and a class or a caption.
    - "webdataset": tar shards, a folder of them or a pattern.
    - "huggingface": a folder written by `save_to_disk`, or the name of a data set.
    - "imagenet", "ffhq", "lsun", "cc3m": the folders of the paper's data sets.

    A set is decoded once, into memory, if `crop` is "center" and it takes under `MEMORY` bytes
    there; else images are read when they are needed.

    Args:
        source: One of the above.
        path: File, folder, pattern or name; None for "digits".
        resolution: Height and width of the images.
        fit: How images reach the resolution. "resize" cuts out a square and resizes it with
            Pillow's bicubic filter, which averages when it makes images smaller. "pad" leaves
            every pixel as it is and puts black around it: the choice for small images just under
            a power of two (28 to 32), where resizing would only blur.
        crop: Which square of a training image: "center", or "random", "zoom" or "dalle" as
            `imagegen.data.decoding.choose_square` describes. Held-out images are central squares.
        flip: Whether every other training image is mirrored.
        held_out: A share between 0 and 1, or a number of images, stratified by class. Of a source
            with its own test images it is how much of those to keep. None: a fifth, or all of the
            source's own; of images in files, as many as fit into `MEMORY`.
        held_out_path: Images to hold out instead, laid out as those of `path`; for folder, list
            and webdataset.
        split_seed: Fixes which images are held out.
        corrupt: Share of unreadable images that is skipped before the set is refused.
        image_column: Where images are called otherwise than usual: a header of a list, a column of
            a Hugging Face data set, an extension in shards.
        label_column: The same for classes.
        text_column: The same for captions.
        progress: Called as progress(description, done, total).

    Returns:
        Training images, and held-out images in memory.

    Raises:
        ConfigError: If source, fit, crop, resolution, held_out or path is not usable.
        ArtifactError: If files are missing, unreadable or truncated, or too many images are.
        DataError: If arrays or images are not what is described above.
        MissingDependencyError: If a package that the source needs is not installed.
    """
    _check_arguments(source, path, resolution, fit, crop, held_out_path)
    columns = {
        "image_column": image_column,
        "label_column": label_column,
        "text_column": text_column,
    }
    if any(columns.values()) and source not in ("list", "webdataset", "huggingface"):
        raise ConfigError(
            f"data: source={source!r} has no columns; got "
            f"{', '.join(f'{k}={v}' for k, v in columns.items() if v)}. Remove them."
        )
    tables = _open_source(source, path, columns, progress)
    if held_out_path is not None:
        tables = [tables[0], _open_source(source, held_out_path, columns, progress)[0]]
    tables = number_classes(tables)
    stored, room = _store(tables, resolution, fit=fit, crop=crop, flip=flip, corrupt=corrupt)
    sets: list[ImageSet | StoredImages] = list(stored)
    if crop == "center" and (room is None or sum(map(len, stored)) <= room):
        sets, room = [images.to_memory(progress=progress) for images in stored], None
    if len(sets) == 2:
        train, test = sets
        if held_out is None:
            held_out = len(test) if room is None else min(room, len(test))
        rows = stratified_rows(test, held_out, split_seed)
        return _flipped(train, flip), test.to_memory(rows, progress=progress)
    if held_out is None:
        held_out = 0.2 if room is None or len(sets[0]) // 5 <= room else room
    chosen = stratified_rows(sets[0], held_out, split_seed)
    kept = np.setdiff1d(np.arange(len(sets[0])), chosen)
    if not len(kept):
        given = held_out if held_out % 1 else int(held_out)
        raise ConfigError(
            f"data: held_out={given} leaves no training images of {len(sets[0])}. Hold out fewer."
        )
    return _flipped(sets[0].subset(kept), flip), sets[0].to_memory(chosen, progress=progress)


def _check_arguments(
    source: str,
    path: str | Path | None,
    resolution: int,
    fit: str,
    crop: str,
    held_out_path: str | Path | None,
) -> None:
    for name, value, known in (
        ("source", source, SOURCES),
        ("fit", fit, FITS),
        ("crop", crop, CROPS),
    ):
        if value not in known:
            raise ConfigError(
                f"data: {name}={value!r} is not known; got none of {', '.join(known)}. Use one of "
                f"these."
            )
    if resolution < 1:
        raise ConfigError(f"data: resolution={resolution} must be at least 1. Use e.g. 32.")
    if (path is None) != (source == "digits"):
        rule = "takes no path" if path is not None else "needs a path"
        raise ConfigError(
            f"data: source={source!r} {rule}; got path={path}. Mend either of the two."
        )
    if fit == "pad" and crop != "center":
        raise ConfigError(
            f"data: crop={crop!r} cuts images, and fit='pad' keeps them whole. Use fit='resize' or "
            f"crop='center'."
        )
    if held_out_path is not None and source not in ("folder", "list", "webdataset"):
        raise ConfigError(
            f"data: source={source!r} says itself what is held out; got "
            f"held_out_path={held_out_path}. Remove it."
        )


def _open_source(
    source: str,
    path: str | Path | None,
    columns: dict[str, str | None],
    progress: Progress | None,
) -> list[Table]:
    """Return the training images of a source, and its own test images if it has any."""
    place = Path(path or "")
    opened: Table | tuple[Table, Table | None]
    if source == "digits":
        opened = open_digits()
    elif source == "list":
        opened = open_list(place, **columns)
    elif source == "webdataset":
        opened = open_webdataset(str(path), **columns, progress=progress)
    elif source == "huggingface":
        opened = open_huggingface(str(path), **columns)
    else:
        openers: dict[str, Callable[[Path], Table | tuple[Table, Table | None]]] = {
            "npz": open_npz,
            "folder": open_folder,
            "imagenet": open_imagenet,
            "ffhq": open_ffhq,
            "lsun": open_lsun,
            "cc3m": open_cc3m,
        }
        opened = openers[source](place)
    tables = [opened] if isinstance(opened, Table) else [t for t in opened if t is not None]
    if not all(len(table.records) for table in tables):
        raise DataError(f"data: path={path} holds a part without images. Fill or remove it.")
    return tables


def _store(
    tables: list[Table], resolution: int, *, fit: str, **settings: Any
) -> tuple[list[StoredImages], int | None]:
    """Return the tables as sets, and how many images fit into `MEMORY`; None for arrays.

    Grey and RGB are for the whole source, but arrays have channels of their own.
    """
    pixels = resolution**2
    total = sum(len(table.records) for table in tables)
    every = total * pixels <= MEMORY
    channels = [count_channels(table.records, every=every) for table in tables]
    in_arrays = isinstance(tables[0].records, Arrays)
    if not in_arrays:
        channels = [max(channels)] * len(tables)
    stored = [
        StoredImages(
            table.records,
            np.arange(len(table.records)),
            resolution,
            own,
            table.labels,
            table.class_names,
            table.texts,
            fit,
            **settings,
        )
        for table, own in zip(tables, channels, strict=True)
    ]
    return stored, None if in_arrays else MEMORY // (pixels * max(channels))


def _flipped(images: ImageSet | StoredImages, flip: bool) -> ImageData:
    return dataclasses.replace(images, flip=flip)
