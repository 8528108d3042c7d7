"""The whole jobs behind the commands: train a run, sample from it, score it, write its report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from imagegen.autoencoder import RQVAE
from imagegen.checks import check_training
from imagegen.config import change_sampling
from imagegen.data import ImageData, ImageSet, open_images, read_images
from imagegen.distributed import join
from imagegen.pictures import save_grid
from imagegen.reconstruct import encode_images, reconstruct, reconstruction_errors
from imagegen.runs import Run
from imagegen.sample import Samples, balanced_labels, sample_images
from imagegen.settings import Config
from imagegen.shifts import count_shifts
from imagegen.split import check_split, read_split, write_split
from imagegen.stage1 import train_stage1
from imagegen.stage2 import train_stage2
from imagegen.training import step_seed
from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.codes import smallest_dtype
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.atomic import atomic_folder
from rqtoolkit.transformer import RQTransformer

__all__ = [
    "draw_from_run",
    "load_models",
    "load_run_images",
    "load_split",
    "reconstruct_images",
    "train_run",
    "write_samples",
]

MOST_SAMPLES = 1_000_000  # all are held in memory until they are written


def load_run_images(config: Config, progress: Progress | None = None) -> tuple[ImageData, ImageSet]:
    """Load the training and held-out images that a configuration names."""
    data = config.data
    if data.path is None and data.source != "digits":
        raise ConfigError(
            f"config {config.name}: data.source={data.source} needs images; got no data.path. "
            f"Pass --data PATH, or set data.path."
        )
    settings = dataclasses.asdict(data)
    for name in ("workers", "tokenizer"):  # what reads the images later, not which
        settings.pop(name)
    return open_images(**settings, progress=progress)


def load_split(run: Run, progress: Progress | None = None) -> tuple[ImageData, ImageSet]:
    """Load the training and held-out images of a run, as they were when it began.

    Raises:
        DataError: If the data have changed since.
    """
    train, held_out = load_run_images(run.config, progress)
    check_split(run.path, train, held_out)
    return train, held_out


def train_run(
    config: Config,
    path: str | Path,
    *,
    stages: Sequence[int] = (1, 2),
    resume: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train one or both stages of a configuration in a run folder.

    Under torchrun, every process calls this and takes its share; the first alone writes.

    Args:
        config: What to train.
        path: Folder of the run.
        stages: Stages to train; 2 alone needs stage 1 finished in the same run.
        resume: Go on with a run that was interrupted, or finished only stage 1.
        replace: Remove an earlier run from the folder.
        progress: Called as progress(description, done, total).

    Everything is checked before the folder is made or changed.

    Raises:
        ConfigError: If the folder is taken, the images are not named, or sizes do not fit.
        ArtifactError: If stage 2 is asked for and stage 1 is not finished, or a file of the run
            is damaged.
        DataError: If the images are not those the run began with, or the loss is no longer finite.
        ShapeError: If training and held-out images have different channels.
    """

    def prepare() -> tuple[ImageData, ImageSet]:
        run = Run.check(path, config, resume=resume, replace=replace)
        if 1 not in stages:
            run.require(run.autoencoder_path, 1)
        train, held_out = load_run_images(config, shown)
        check_training(config, train, held_out, stages=stages, processes=ranks.size)
        if not replace:
            check_split(path, train, held_out)
        return train, held_out

    with join() as ranks:
        shown = progress if ranks.main else None
        train, held_out = ranks.together(prepare)
        if ranks.main:
            Run.create(path, config, resume=resume, replace=replace)
            write_split(path, train, held_out)
        ranks.wait()
        run = Run(Path(path), config, ranks)
        if 1 in stages:
            train_stage1(run, train, held_out, progress=shown)
        if 2 in stages:
            autoencoder = RQVAE.load(run.require(run.autoencoder_path, 1), run.device)
            train_stage2(run, autoencoder, train, held_out, progress=shown)
    return run


def load_models(run: Run) -> tuple[RQVAE, RQTransformer]:
    """Load both finished models of a run."""
    autoencoder = RQVAE.load(run.require(run.autoencoder_path, 1), run.device)
    path = run.require(run.transformer_path, 2)
    return autoencoder, RQTransformer.load(path, device=run.device)


def draw_from_run(
    run: Run,
    number: int,
    *,
    classes: Sequence[int] | None = None,
    labels: np.ndarray | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    **sampling: Any,
) -> Samples:
    """Draw images from a finished run.

    Args:
        run: The run.
        number: Images to draw, at most `MOST_SAMPLES`.
        classes: Classes to draw in even numbers; None for all of them.
        labels: The class of each image instead, shape (number,), int64.
        seed: Fixes the result; None takes the run's.
        progress: Called as progress(description, done, total).
        **sampling: Settings of `imagegen.sample.sample_images` that replace the run's own.

    Raises:
        ConfigError: If a class is not one of the model's, or a setting is out of its range.
        ArtifactError: If the run is not finished.
    """
    settings = dataclasses.asdict(change_sampling(run.config, sampling))
    settings.pop("accept")
    seed = run.config.seed if seed is None else seed
    if not 1 <= number <= MOST_SAMPLES:
        raise ConfigError(
            f"sample: num={number} must be between 1 and {MOST_SAMPLES}. Draw in several parts, "
            f"each with a seed."
        )
    if seed < 0:
        raise ConfigError(f"sample: seed={seed} must be at least 0. Choose another.")
    autoencoder, transformer = load_models(run)
    kinds = _count_classes(run, transformer)
    if labels is None and (kinds is not None or classes is not None):
        labels = balanced_labels(number, range(kinds or 1) if classes is None else classes)
    if labels is not None and (kinds is None or not 0 <= labels.min() <= labels.max() < kinds):
        known = "none" if kinds is None else f"0 to {kinds - 1}"
        raise ConfigError(
            f"sample: classes={sorted(set(labels.tolist()))} are not the model's; it has {known}. "
            f"Choose among those, or leave --classes out."
        )
    return sample_images(
        transformer,
        autoencoder,
        number,
        labels=labels,
        reach=run.config.stage2.shift,
        seed=step_seed(seed, 3),
        progress=progress,
        **settings,
    )


def _count_classes(run: Run, transformer: RQTransformer) -> int | None:
    """Return how many classes a run's images have, None for images without."""
    split = read_split(run.path)
    if split is not None:
        return cast("int | None", split["classes"])
    # Runs without split.json: one class moved by shifts looks like no classes.
    conditions, shifts = transformer.num_classes, count_shifts(run.config.stage2.shift)
    return None if conditions is None or conditions == shifts > 1 else conditions // shifts


def write_samples(
    samples: Samples, path: str | Path, *, grid: Sequence[np.ndarray] | None = None
) -> None:
    """Write every image as a PNG, a grid of them, codes.npy and labels.npy, as a new folder.

    Args:
        samples: What to write.
        path: New folder.
        grid: Rows of the grid; None takes the first hundred images.

    Raises:
        ArtifactError: If the folder is there already.
    """
    with atomic_folder(path) as folder:
        labels = [""] * len(samples.images)
        if samples.labels is not None:
            labels = [f"-class-{label}" for label in samples.labels]
            np.save(folder / "labels.npy", samples.labels)
        if grid is None:
            grid = np.array_split(samples.images[:100], min(10, len(samples.images)))
        save_grid(folder / "grid.png", grid)
        for number, (image, label) in enumerate(zip(samples.images, labels, strict=True)):
            Image.fromarray(image.squeeze()).save(folder / f"{number:05d}{label}.png")
        np.save(folder / "codes.npy", samples.codes)


def reconstruct_images(
    run: Run, source: Path | None, out: Path, *, progress: Progress | None = None
) -> list[float]:
    """Send images through the RQ-VAE of a run and write what comes out as a new folder.

    Args:
        run: A run whose stage 1 is finished.
        source: A folder of images or an .npz, whose `x_test` counts; None takes held-out images.
        out: New folder: a PNG an image, grid.png with every depth of the first, codes.npy.
        progress: Called as progress(description, done, total).

    Returns:
        The relative error at every depth.

    Raises:
        ArtifactError: If the run or the images cannot be read, or `out` is there already.
    """
    autoencoder = RQVAE.load(run.require(run.autoencoder_path, 1), run.device)
    data = run.config.data
    if source is None:
        images = load_split(run, progress)[1].images
    else:
        images = read_images(
            source, resolution=data.resolution, fit=data.fit, progress=progress
        ).images
    levels = reconstruct(autoencoder, images)
    dtype = smallest_dtype(autoencoder.quantizer.codebook_sizes)
    samples = Samples(levels[-1], encode_images(autoencoder, images).numpy().astype(dtype), None)
    write_samples(samples, out, grid=[images[:10], *levels[:, :10]])
    return reconstruction_errors(images, levels)
