"""Sampling as a whole job: from a run and what is asked for to samples."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from imagegen.autoencoder import RQVAE
from imagegen.classifiers import classifier_path, own_classifier, read_classifier
from imagegen.config import change_sampling
from imagegen.data.stored import read_pixels
from imagegen.distributed import Ranks
from imagegen.drawing import Drawing, draw_in_folder, draw_in_memory, working_folder
from imagegen.evaluate import Extractor
from imagegen.guards import enough_room
from imagegen.jobs import load_models, load_split
from imagegen.reconstruct import encode_images
from imagegen.runs import Run
from imagegen.sample import Sampler, Samples, balanced_labels
from imagegen.sample_files import FORMATS, check_formats, write_samples
from imagegen.shifts import count_shifts
from imagegen.split import read_split
from imagegen.training import step_seed
from imagegen.user_images import open_user_images, read_for_run
from imagegen.weights import file_sha256
from rqtoolkit.errors import ArtifactError, ConfigError, RQToolkitError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.transformer import RQTransformer

__all__ = ["check_new_folder", "count_classes", "draw_from_run", "plan_drawing", "sample_to_folder"]

MOST_SAMPLES = 10_000_000

_log = logging.getLogger("imagegen.sample")


def plan_drawing(
    run: Run,
    number: int,
    *,
    classes: Sequence[int] | None = None,
    labels: np.ndarray | None = None,
    texts: Sequence[str] | None = None,
    prefix: tuple[np.ndarray, int] | None = None,
    classifier: Path | None = None,
    dtype: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    **sampling: Any,
) -> Drawing:
    """Check what is asked of a run, load its models, and say what is to be drawn.

    Args:
        run: A finished run.
        number: Images to draw, at most `MOST_SAMPLES`.
        classes: Classes to draw in even numbers; None for all of them.
        labels: The class of each image instead, shape (number,), int64.
        texts: Texts to draw in even numbers, for models of text.
        prefix: An image, shape (H, W, C), uint8, and how many rows of its codes all samples
            begin with.
        classifier: Weights of what scores images for rejection, where `accept` is under 1; None
            takes the run's own classifier, trained on its images if it is not yet there.
        dtype: "float32" or "bfloat16", in which the models compute; None takes the run's.
        seed: Fixes the result; None takes the run's.
        progress: Called as progress(description, done, total).
        **sampling: Settings of `imagegen.settings.SamplingConfig` that replace the run's own.

    Raises:
        ConfigError: If a class is not one of the model's, a setting is out of its range, or what
            is asked does not fit the kind of model.
        ArtifactError: If the run is not finished.
    """
    settings = dataclasses.asdict(change_sampling(run.config, sampling))
    seed = run.config.seed if seed is None else seed
    if not 1 <= number <= MOST_SAMPLES:
        advice = "Ask for one at least" if number < 1 else "Draw in parts, each with its own seed"
        raise ConfigError(f"sample: num={number} must be between 1 and {MOST_SAMPLES}. {advice}.")
    if seed < 0:
        raise ConfigError(f"sample: seed={seed} must be at least 0. Choose another.")
    if classifier is not None and settings["accept"] == 1:
        raise ConfigError(
            f"sample: --classifier={classifier} scores images for rejection; got no share to keep. "
            f"Add --accept, such as --accept 0.5, or leave --classifier out."
        )
    dtype = dtype or run.config.stage2.dtype or run.config.dtype
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"sample: dtype={dtype} is not known. Use float32 or bfloat16.")
    autoencoder, transformer = load_models(run)
    if dtype == "bfloat16":
        transformer.to(torch.bfloat16)
    labels = _labels(run, transformer, number, classes, labels)
    captions, tokens = _texts(run, transformer, number, texts)
    start = None if prefix is None else _prefix(autoencoder, *prefix)
    accept, batch_size = settings.pop("accept"), settings.pop("batch_size")
    judge = None
    if accept < 1 and labels is not None:
        kinds = count_classes(run, transformer) or 1
        judge = _judge(run, classifier, kinds, progress)
    plan = {
        "number": number,
        "seed": seed,
        "dtype": dtype,
        "device": run.device.type,
        **settings,
        "accept": accept,
        "batch_size": batch_size,
        "classes": None if labels is None else _counts(labels),
        "labels_sha256": _digest(labels),
        "captions_sha256": _digest(tokens),
        "prefix_sha256": None if start is None else _digest(start.numpy()),
        "classifier": None if judge is None else f"{judge.name} {judge.sha256}",
        "rqvae": file_sha256(run.autoencoder_path),
        "rqtransformer": file_sha256(run.transformer_path),
    }
    return Drawing(
        Sampler(transformer, autoencoder, seed=step_seed(seed, 3), **settings),
        number,
        plan,
        labels=labels,
        text=tokens,
        captions=captions,
        prefix=start,
        reach=run.config.stage2.shift,
        accept=accept,
        classifier=judge,
        batch_size=batch_size,
    )


def draw_from_run(
    run: Run, number: int, *, progress: Progress | None = None, **asked: Any
) -> Samples:
    """Draw images from a finished run, all of them in memory.

    Args:
        run: The run.
        number: Images to draw.
        progress: Called as progress(description, done, total).
        **asked: What else `plan_drawing` takes.

    Raises:
        ConfigError: As `plan_drawing`.
        ArtifactError: If the run is not finished.
    """
    return draw_in_memory(plan_drawing(run, number, progress=progress, **asked), progress=progress)


def sample_to_folder(
    run: Run,
    out: Path,
    number: int,
    *,
    prefix: Path | None = None,
    rows: int | None = None,
    formats: Sequence[str] = FORMATS,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """Draw samples and write them as a new folder; a job that was killed goes on where it stopped.

    Until the folder appears, parts lie in `.NAME.unfinished` beside it.

    Args:
        run: A finished run.
        out: New folder.
        number: Images to draw.
        prefix: An image to complete: the grid shows it, what was kept of it, and what was drawn.
        rows: Rows of its codes that are kept.
        formats: As for `imagegen.sample_files.write_samples`.
        ranks: The processes that share the work; None is one alone.
        progress: Called as progress(description, done, total).
        **asked: What else `plan_drawing` takes.

    Returns:
        What sampling.json holds: the settings, and what rejection did.

    Raises:
        ArtifactError: If `out` exists and is not empty, or the run is not finished.
        ConfigError: As `plan_drawing`, or if an unfinished job with other settings is in its place.
    """
    ranks = ranks or Ranks()
    check_new_folder(out)
    check_formats(formats)
    if (prefix is None) != (rows is None):
        raise ConfigError(
            f"sample: prefix={prefix} and rows={rows} go together; got one of them. Give the image "
            f"and how many rows of its codes to keep."
        )
    original = None if prefix is None else _read_prefix(run, prefix)
    if original is not None and rows is not None:
        asked["prefix"] = (original, rows)
    if not ranks.main:  # the first may have to train a classifier, which the others then find
        ranks.wait()
    drawing = plan_drawing(run, number, progress=progress, **asked)
    if ranks.main:
        ranks.wait()
    folder = working_folder(out)
    advice = "Make room; the same command then goes on where this one stopped."
    with enough_room(out, advice):
        samples, statistics = draw_in_folder(drawing, folder, ranks=ranks, progress=progress)
    record = {**drawing.plan, **statistics}
    if ranks.main:
        grid = None
        if original is not None:
            shown = np.stack([original, _keep_rows(original, drawing)])
            grid = [shown, *np.array_split(samples.images[:100], math.ceil(min(number, 100) / 10))]
        with enough_room(out, advice):
            write_samples(samples, out, formats=formats, grid=grid, record=record)
        shutil.rmtree(folder)
    ranks.wait()
    return record


def check_new_folder(out: Path) -> None:
    """Refuse a folder that is taken, before the work.

    Raises:
        ArtifactError: If it exists and is not empty, or its parent is missing or read-only.
    """
    if not out.parent.is_dir():
        raise ArtifactError(
            f"output: {out} cannot be written; got no folder {out.parent}. Make it first."
        )
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"output: {out} must be a new folder; got a file. Choose another name.")
    if out.exists() and any(out.iterdir()):
        raise ArtifactError(
            f"output: folder {out} exists and is not empty. Choose another, or remove it first."
        )
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix="."):
            pass
    except OSError as error:
        raise ArtifactError(
            f"output: {out} cannot be written; got {error.strerror}. Choose another place or name."
        ) from None


def _read_prefix(run: Run, path: Path) -> np.ndarray:
    """Read the image whose first rows of codes samples shall begin with, shape (H, W, C), uint8."""
    if not path.is_file():
        fact = "a folder" if path.is_dir() else "no such file"
        raise ArtifactError(
            f"sample: --prefix={path} must be one image; got {fact}. Name the file of an image."
        )
    autoencoder = RQVAE.load(run.require(run.autoencoder_path, 1))
    images = read_for_run(run, autoencoder, [path])
    if len(images) != 1:
        raise ConfigError(
            f"sample: --prefix={path} must be one image; got {len(images)}. Name the file of one."
        )
    given = read_pixels(open_user_images(path), 0)
    if autoencoder.image_channels == 1 and (given != given[..., :1]).any():
        _log.warning("--prefix=%s is in colour; its greys are what the grey model completes", path)
    image: np.ndarray = images[0]
    return image


def _prefix(autoencoder: RQVAE, image: np.ndarray, rows: int) -> torch.Tensor:
    height = autoencoder.grid[0]
    if not 1 <= rows < height:
        raise ConfigError(
            f"sample: rows={rows} must leave some of the {height} rows of codes to draw. Choose 1 "
            f"to {height - 1}."
        )
    codes = encode_images(autoencoder, image[None])
    return codes[0, :rows].flatten(0, 1)


def _keep_rows(image: np.ndarray, drawing: Drawing) -> np.ndarray:
    """Return an image with all that is drawn anew in grey."""
    assert drawing.prefix is not None
    height, width = drawing.sampler.autoencoder.grid
    kept = len(drawing.prefix) // width * len(image) // height
    masked = image.copy()
    masked[kept:] = 128
    return masked


def _judge(run: Run, classifier: Path | None, classes: int, progress: Progress | None) -> Extractor:
    """Return what scores candidates."""
    if classifier is not None:
        return read_classifier(classifier, run, classes=classes)
    if classifier_path(run).is_file():
        return read_classifier(classifier_path(run), run, classes=classes)
    try:
        train = load_split(run, progress)[0]
    except RQToolkitError as error:
        raise ArtifactError(
            f"sample: --accept needs a classifier, which {run.path} would train on its images; got "
            f"none to train on ({error}) Give one with --classifier, or leave --accept out."
        ) from None
    return own_classifier(run, train, progress=progress)


def _texts(
    run: Run, transformer: RQTransformer, number: int, texts: Sequence[str] | None
) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    """Return the text of each image and its tokens; None and None for models without text."""
    if transformer.text_length is None:
        if texts is not None:
            raise ConfigError(
                f"sample: text={texts[0]!r} needs a model of text; got one without. Leave --text "
                f"out."
            )
        return None, None
    if not texts:
        raise ConfigError("sample: a model of text needs a text; got none. Give --text or --texts.")
    which = balanced_labels(number, range(len(texts)))
    from imagegen.text import load_run_tokenizer

    tokens = load_run_tokenizer(run).encode(list(texts))
    return tuple(texts[row] for row in which), tokens.numpy()[which]


def _labels(
    run: Run,
    transformer: RQTransformer,
    number: int,
    classes: Sequence[int] | None,
    labels: np.ndarray | None,
) -> np.ndarray | None:
    """Return the class of each image, checked; None for models without classes."""
    kinds = count_classes(run, transformer)
    if labels is None and (kinds is not None or classes is not None):
        labels = balanced_labels(number, range(kinds or 1) if classes is None else classes)
    if labels is not None and (kinds is None or not 0 <= labels.min() <= labels.max() < kinds):
        known = "none" if kinds is None else f"0 to {kinds - 1}"
        raise ConfigError(
            f"sample: classes={sorted(set(labels.tolist()))} are not the model's; it has {known}. "
            f"Choose among those, or leave --classes out."
        )
    return labels


def count_classes(run: Run, transformer: RQTransformer) -> int | None:
    """Return how many classes a run's samples can be asked for, None for models without."""
    if transformer.text_length is not None:
        return None
    split = read_split(run.path)
    if split is not None:
        return cast("int | None", split["classes"])
    # Runs without split.json: one class moved by shifts looks like no classes.
    conditions, shifts = transformer.num_classes, count_shifts(run.config.stage2.shift)
    return None if conditions is None or conditions == shifts > 1 else conditions // shifts


def _counts(labels: np.ndarray) -> dict[str, int]:
    """Return how many images of each class are asked for, by its number."""
    classes, counts = np.unique(labels, return_counts=True)
    return dict(zip(map(str, classes.tolist()), counts.tolist(), strict=True))


def _digest(array: np.ndarray | None) -> str | None:
    if array is None:
        return None
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
