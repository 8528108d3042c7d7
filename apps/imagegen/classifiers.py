"""The classifiers of a run: the small one trained on its own images, or one the user gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imagegen.evaluate import Classifier, Extractor, train_classifier
from imagegen.evaluate.resnet import ResNet
from imagegen.images import ImageData, ImageSet
from imagegen.runs import Run
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.functional.progress import Progress

__all__ = ["classifier_path", "images_to_learn_from", "own_classifier", "read_classifier"]

MOST_BYTES = 2 << 30  # of training images in memory: 700,000 of 32x32, 10,000 of 256x256


def classifier_path(run: Run) -> Path:
    """Return where a run keeps the classifier trained on its images."""
    return run.checkpoints / "classifier.safetensors"


def images_to_learn_from(train: ImageData, *, progress: Progress | None = None) -> ImageSet:
    """Return a run's training images in memory: all of them, or as many as 2 GiB hold, evenly."""
    height, width = train.resolution
    most = max(1, MOST_BYTES // (height * width * train.channels))
    if len(train) <= most:
        return train.to_memory(progress=progress)
    rows = np.linspace(0, len(train) - 1, most).round().astype(np.int64)
    return train.to_memory(rows, progress=progress)


def own_classifier(run: Run, train: ImageData, *, progress: Progress | None = None) -> Classifier:
    """Return the small classifier of a run's training images, trained where it is not yet there.

    It is not seeded by the run: runs on the same data are seen through the same network.

    Args:
        run: Keeps the classifier with its checkpoints.
        train: Its training images, of several classes.
        progress: Called as progress(description, done, total).
    """
    path = classifier_path(run)
    name = f"{run.config.name}-cnn-v1"
    if path.is_file():
        classifier = Classifier.load(path, run.device)
        sizes = (classifier.resolution, classifier.channels, classifier.num_classes)
        if classifier.name == name and sizes == (
            train.resolution[0],
            train.channels,
            train.num_classes,
        ):
            return classifier
    images = images_to_learn_from(train, progress=progress)
    classifier = train_classifier(images, name=name, device=run.device, progress=progress)
    classifier.save(path)
    return classifier


def read_classifier(path: Path, run: Run, *, classes: int) -> Extractor:
    """Read a classifier that the user gives; nothing in the file is run.

    Args:
        path: An artifact of `imagegen.evaluate.Classifier`, as `checkpoints/classifier.safetensors`
            of a run, or the weights of a ResNet in torchvision's layout.
        run: Says where it computes.
        classes: Classes it must know, in the order of the run's.

    Raises:
        ArtifactError: If the file is neither.
        ConfigError: If it knows another number of classes.
    """
    try:
        classifier: Classifier | ResNet = Classifier.load(path, run.device)
    except ArtifactError:
        classifier = ResNet.load(path, run.device)
    if classifier.num_classes != classes:
        raise ConfigError(
            f"sample: classifier={path} must know the model's {classes} classes, in their order; "
            f"got {classifier.num_classes}. Give another, or none for the run's own."
        )
    return classifier
