"""The sets that scores compare: reference images, and samples drawn or brought along."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagegen.data import ImageData
from imagegen.drawing import draw_in_folder
from imagegen.evaluate import Extractor, Reference, gather_statistics, load_reference, read_suite
from imagegen.images import ImageSet, UnreadableImageError
from imagegen.runs import Run
from imagegen.sample import Samples
from imagegen.sample_files import read_samples
from imagegen.sample_jobs import plan_drawing
from imagegen.user_images import read_user_images
from rqtoolkit.functional.progress import Progress

__all__ = [
    "GivenSamples",
    "draw_samples",
    "forget_parts",
    "gather_reference",
    "open_reference",
    "read_given",
]

BATCH = 250


@dataclass(frozen=True)
class GivenSamples:
    """Samples to score, and how they came about.

    Attributes:
        samples: The images; codes are empty where they are not known.
        seed: They were drawn with, None where it is not known.
        sampler: The settings, None where they are not known.
        origin: "drawn" by the run, or the path they were read from.
    """

    samples: Samples
    seed: int | None
    sampler: Mapping[str, Any] | None
    origin: str


def draw_samples(
    run: Run,
    number: int | None,
    held_out: ImageSet,
    *,
    progress: Progress | None = None,
) -> GivenSamples:
    """Draw samples to score, in parts within the run that survive a kill.

    Args:
        run: A finished run.
        number: How many, all classes alike; None draws one for each held-out image, of its class
            or of its text.
        held_out: The held-out images.
        progress: Called as progress(description, done, total).
    """
    asked: dict[str, Any] = {}
    wanted = len(held_out) if number is None else number
    if held_out.texts is not None and run.config.transformer.text_length is not None:
        asked["texts"] = list(held_out.texts[:wanted])
    elif number is None:
        asked["labels"] = held_out.labels
    drawing = plan_drawing(run, wanted, progress=progress, **asked)
    plan = hashlib.sha256(json.dumps(dict(drawing.plan)).encode()).hexdigest()
    folder = run.samples / f".evaluated-{plan[:12]}.unfinished"
    samples, statistics = draw_in_folder(drawing, folder, progress=progress)
    described = ("dtype", "temperature", "top_k", "top_p", "cfg_scale", "accept", "batch_size")
    sampler = {name: drawing.plan[name] for name in described} | statistics
    sampler["classes"] = "as the held-out images" if number is None else "all alike"
    return GivenSamples(samples, drawing.plan["seed"], sampler, "drawn")


def forget_parts(run: Run) -> None:
    """Remove the parts that `draw_samples` left in a run, once all is written."""
    for folder in run.samples.glob(".evaluated-*.unfinished"):
        shutil.rmtree(folder)


def read_given(path: Path, held_out: ImageSet) -> GivenSamples:
    """Read samples that were drawn before, or elsewhere.

    Raises:
        ArtifactError: If they cannot be read.
        DataError: If they do not fit the run's images.
    """
    found = read_samples(
        path,
        resolution=held_out.resolution[0],
        channels=held_out.channels,
        class_names=held_out.class_names,
    )
    none = np.empty((0, 0), np.uint8)
    return GivenSamples(Samples(found.images, none, found.labels), None, None, str(path))


def open_reference(
    path: Path | None,
    train: ImageData,
    extractor: Extractor,
    *,
    fit: str,
    progress: Progress | None = None,
) -> Reference:
    """Return the statistics of a reference set, read or computed.

    Args:
        path: A .safetensors that `save_reference` wrote, an .npz in the layout of the ADM
            evaluation suite, or a folder of images, which are brought to the run's size; None
            takes all training images.
        train: The run's training images.
        extractor: Looks at them.
        fit: How images of a folder reach the run's size, as `data.fit`.
        progress: Called as progress(description, done, total).

    Raises:
        ArtifactError: If the path cannot be read, or was computed through another extractor.
        DataError: If it does not hold a reference set.
    """
    if path is None:
        return gather_reference("training images of the run", train, extractor, progress=progress)
    if path.suffix == ".safetensors":
        return load_reference(path, extractor)
    if path.suffix == ".npz":
        return read_suite(path, extractor, progress=progress)
    images = read_user_images(
        [path],
        resolution=train.resolution[0],
        channels=train.channels,
        fit=fit,
        progress=progress,
    )
    return gather_reference(path.name, ImageSet(images), extractor, progress=progress)


def gather_reference(
    name: str, images: ImageData, extractor: Extractor, *, progress: Progress | None = None
) -> Reference:
    """Compute the statistics of a set of images; those that cannot be read are left out."""
    statistics = gather_statistics(
        extractor,
        _batches(images),
        total=len(images),
        title=f"looking at {name}",
        progress=progress,
    )
    return Reference(name, images.fingerprint(), statistics.images, statistics)


def _batches(images: ImageData) -> Iterator[np.ndarray]:
    for start in range(0, len(images), BATCH):
        found = []
        for row in range(start, min(len(images), start + BATCH)):
            try:
                found.append(images.read(row))
            except UnreadableImageError:  # training passed it over, too
                continue
        if found:
            yield np.stack(found)
