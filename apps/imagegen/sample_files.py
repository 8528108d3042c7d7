"""Samples on disk: PNGs, a grid, codes, and the archive that evaluation suites read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagegen.images import ImageSet
from imagegen.pictures import save_grid
from imagegen.sample import Samples
from imagegen.user_images import open_user_images, read_whole_images
from rqtoolkit.errors import ConfigError, DataError
from rqtoolkit.io.atomic import atomic_folder

__all__ = ["FORMATS", "check_formats", "read_samples", "write_samples"]

FORMATS = ("png", "npz")


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that are not known.

    Raises:
        ConfigError: If one is not, or there are none.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise ConfigError(
            f"sample: format={','.join(formats)} is not known; got {', '.join(unknown) or 'none'}. "
            f"Use any of {', '.join(FORMATS)}."
        )


def write_samples(
    samples: Samples,
    path: str | Path,
    *,
    formats: Sequence[str] = ("png",),
    grid: Sequence[np.ndarray] | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write samples as a new folder.

    It holds `grid.png`, `codes.npy`, `labels.npy` for models with classes, `captions.json` for
    models with text, and by format

    - "png": every image, `00000-class-3.png`;
    - "npz": `samples.npz` in the layout of the ADM evaluation suite, `arr_0` (N, H, W, 3) uint8,
      grey images as three equal channels, and `arr_1` (N,) int64 with classes.

    Images are read in parts: they may be memory-mapped and larger than the memory.

    Args:
        samples: What to write.
        path: New folder.
        formats: Any of "png" and "npz".
        grid: Rows of the grid; None takes the first hundred images.
        record: Written as `sampling.json`: how the samples were drawn.

    Raises:
        ConfigError: If a format is not known.
        ArtifactError: If the folder is there already.
    """
    check_formats(formats)
    number = len(samples.images)
    with atomic_folder(path) as folder:
        if grid is None:
            grid = np.array_split(samples.images[:100], min(10, number))
        save_grid(folder / "grid.png", grid)
        np.save(folder / "codes.npy", samples.codes)
        if samples.labels is not None:
            np.save(folder / "labels.npy", samples.labels)
        if samples.captions is not None:
            _write_json(folder / "captions.json", list(samples.captions))
        if record is not None:
            _write_json(folder / "sampling.json", record)
        if "npz" in formats:
            height, width = samples.images.shape[1:3]
            arrays = {"arr_0": np.broadcast_to(samples.images, (number, height, width, 3))}
            if samples.labels is not None:
                arrays["arr_1"] = samples.labels
            np.savez(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
        if "png" in formats:
            digits = max(5, len(str(number - 1)))
            for row, image in enumerate(samples.images):
                label = "" if samples.labels is None else f"-class-{samples.labels[row]}"
                Image.fromarray(image.squeeze()).save(folder / f"{row:0{digits}d}{label}.png")


def read_samples(
    path: Path, *, resolution: int, channels: int, class_names: tuple[str, ...] | None
) -> ImageSet:
    """Read samples to score: an .npz of the ADM layout, a folder of ours, or a folder of images.

    Args:
        path: The file or folder.
        resolution: Height and width of the images of the run; others are refused, since resizing
            would change the scores.
        channels: Channels of the run.
        class_names: The run's classes; labels (`arr_1`, `labels.npy`) are read for them alone.

    Raises:
        ArtifactError: If the path cannot be read.
        DataError: If images or labels do not fit the run.
    """
    source = path / "samples.npz" if (path / "samples.npz").is_file() else path
    labels = None
    images = read_whole_images(open_user_images(source))
    if source.suffix.lower() == ".npz":
        with np.load(source, allow_pickle=False) as file:
            labels = file["arr_1"] if "arr_1" in file.files else None
    elif (path / "labels.npy").is_file():
        labels = np.load(path / "labels.npy", allow_pickle=False)
    if images.shape[1:3] != (resolution, resolution):
        raise DataError(
            f"samples: images of {path} must be {resolution}x{resolution} as the run's; got "
            f"{images.shape[1]}x{images.shape[2]}. Resizing would change the scores: draw others."
        )
    if channels == 1:  # grey images are stored as three equal channels
        images = images[..., :1]
    elif images.shape[3] == 1:
        images = np.broadcast_to(images, (*images.shape[:3], 3))
    if labels is None or class_names is None:
        return ImageSet(images)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"samples: labels of {path} must be one integer for each of {len(images)} images; got "
            f"{labels.dtype} {labels.shape}. Mend arr_1 or labels.npy."
        )
    return ImageSet(images, labels.astype(np.int64), class_names)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
