"""The comparison table: which sets are compared with which, and what the figures are called.

Everything is compared with the held-out images, as many of everything as there are held-out images:

| row | images |
|---|---|
| real | training images with the held-out images' numbers per class, drawn by the seed |
| reconstruction | the held-out images after encoding and decoding |
| class mean | for each held-out image the mean training image of its class, rounded |
| samples | what the model drew, asked for the held-out images' classes |

"real" is the floor: the same figures for data no model can beat but by luck. Three of its columns
would say nothing of training images, since the classifier and the search for copies know them;
there it shows the held-out images themselves: class accuracy (the ceiling), duplicates, and how
near they come to training images. Reconstructions come from the very images they are compared
with, so their distances may lie under the floor.

Learning by heart: a decoder that loses anything never repeats a training image to the bit, so an
image counts as a near copy where it is at least as near to a training image as the nearest 1% of
the held-out images are. Of honest samples that is about 1%.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from imagegen.evaluate.classifier import Classifier
from imagegen.evaluate.frechet import frechet_distance
from imagegen.evaluate.neighbours import (
    duplicate_share,
    nearest_distances,
    neighbour_radii,
    neighbour_scores,
)
from imagegen.images import ImageSet
from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.progress import Progress, report

__all__ = ["NEIGHBOURS", "EvaluationResult", "class_means", "evaluate_samples", "matching_subset"]

NEIGHBOURS = 5
NEAR_SHARE = 0.01  # of the held-out images, whose distance to training images sets "near"


@dataclass(frozen=True)
class EvaluationResult:
    """Scores with everything needed to know what they compare with.

    Attributes:
        extractor: Name of the classifier whose features were used.
        sha256: Fingerprint of its weights.
        images: Number of images in every set (N).
        k: Neighbours that give a ball its radius.
        resolution: Height and width of all images.
        channels: 1 or 3.
        seed: The seed that drew the training images of the floor.
        table: One row each for real, reconstruction (where given), class mean and samples, with
            the keys `set`, `frechet_distance`, `precision`, `recall`, `density`, `coverage`,
            `class_accuracy`, `duplicates`, `near_copies`, `nearest_training_distance`.
    """

    extractor: str
    sha256: str
    images: int
    k: int
    resolution: tuple[int, int]
    channels: int
    seed: int
    table: tuple[dict[str, Any], ...]

    def row(self, name: str) -> dict[str, Any]:
        """Return the row of one set: "real", "reconstruction", "class mean" or "samples"."""
        return next(row for row in self.table if row["set"] == name)

    @property
    def metrics(self) -> dict[str, float]:
        """The samples' figures, each beside the same figure of real images.

        `…_floor` is that of training images, `…_ceiling` and `…_held_out` of held-out ones.
        """
        samples, real = self.row("samples"), self.row("real")
        figures = {"class_accuracy": samples["class_accuracy"]}
        figures["class_accuracy_ceiling"] = real["class_accuracy"]
        for name in ("coverage", "recall", "precision", "density", "frechet_distance"):
            figures[name], figures[f"{name}_floor"] = samples[name], real[name]
        for name in ("duplicates", "near_copies", "nearest_training_distance"):
            figures[name], figures[f"{name}_held_out"] = samples[name], real[name]
        return figures

    def to_json(self) -> dict[str, Any]:
        """Return as plain values what `metrics` does not hold: the conditions, the other rows."""
        return {
            "extractor": {"name": self.extractor, "sha256": self.sha256},
            "images": self.images,
            "k": self.k,
            "resolution": list(self.resolution),
            "channels": self.channels,
            "seed": self.seed,
            "references": [row for row in self.table if row["set"] not in ("real", "samples")],
        }


def matching_subset(images: ImageSet, labels: np.ndarray, *, seed: int) -> ImageSet:
    """Return as many images as there are labels, with the labels' numbers per class, drawn by seed.

    Args:
        images: Images with classes.
        labels: Shape (N,), int64.
        seed: Fixes the draw.

    Raises:
        DataError: If a class has fewer images than labels.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for label, number in zip(*np.unique(labels, return_counts=True), strict=True):
        available = np.flatnonzero(images.labels == label)
        if len(available) < number:
            raise DataError(
                f"matching_subset: class {label} needs {number} images to match; "
                f"got {len(available)}. Hold out fewer images."
            )
        rows.append(generator.permutation(available)[:number])
    return images.subset(np.sort(np.concatenate(rows)))


def class_means(train: ImageSet, labels: np.ndarray) -> np.ndarray:
    """Return for each label the mean training image of that class, rounded: the trivial generator.

    Args:
        train: Images with classes.
        labels: Shape (N,), int64, classes that train has.

    Returns:
        Images (N, H, W, C), uint8.
    """
    classes, inverse = np.unique(labels, return_inverse=True)
    means = [train.images[train.labels == label].mean(0) for label in classes]
    return np.rint(np.stack(means)).astype(np.uint8)[inverse]


def evaluate_samples(
    classifier: Classifier,
    train: ImageSet,
    held_out: ImageSet,
    samples: ImageSet,
    reconstructions: np.ndarray | None = None,
    *,
    k: int = NEIGHBOURS,
    seed: int = 0,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Score samples against held-out images, beside the reference rows described above.

    Args:
        classifier: Trained on `train`, see `train_classifier`.
        train: The training images.
        held_out: Images that neither model nor classifier saw.
        samples: As many as held-out images; labels are the classes that were asked for.
        reconstructions: Of the held-out images, in their order, uint8 (N, H, W, C).
        k: Neighbours that give a ball its radius.
        seed: Draws the training images of the floor.
        progress: Called as progress(description, done, total).

    Raises:
        DataError: If a set has no labels, or there are not more than k held-out images.
        ShapeError: If the numbers or sizes of images differ.
    """
    if held_out.labels is None or samples.labels is None or train.labels is None:
        raise DataError(
            "evaluate_samples: train, held_out and samples must have labels; got images without. "
            "The samples' labels are the classes they were asked for."
        )
    for name, images in (("samples", samples.images), ("reconstructions", reconstructions)):
        if images is not None and images.shape != held_out.images.shape:
            raise ShapeError(
                f"evaluate_samples: {name} must be as many and as large as the held-out images, "
                f"shape {held_out.images.shape}; got {images.shape}. Make {len(held_out)} of them."
            )
    floor = matching_subset(train, held_out.labels, seed=seed)
    sets = [
        ("real", floor.images, held_out.labels),
        ("class mean", class_means(train, held_out.labels), held_out.labels),
        ("samples", samples.images, samples.labels),
    ]
    if reconstructions is not None:
        sets.insert(1, ("reconstruction", reconstructions, held_out.labels))
    real = classifier.features(held_out.images)
    radii = neighbour_radii(real, k=k)
    held_out_nearest = nearest_distances(held_out.images, train.images, progress=progress)
    near = np.quantile(held_out_nearest, NEAR_SHARE)
    table = []
    for done, (name, images, labels) in enumerate(sets):
        report(progress, "evaluating", done, len(sets))
        features = classifier.features(images)
        scores = neighbour_scores(real, features, k=k, real_radii=radii)
        # In the row of real images these are the held-out ones, see the top of this file.
        if name == "real":
            shown, seen, nearest = held_out.images, real, held_out_nearest
        else:
            shown, seen = images, features
            nearest = nearest_distances(shown, train.images, progress=progress)
        table.append(
            {
                "set": name,
                "frechet_distance": frechet_distance(real, features),
                "precision": scores.precision,
                "recall": scores.recall,
                "density": scores.density,
                "coverage": scores.coverage,
                "class_accuracy": float((classifier.classify(seen) == labels).mean()),
                "duplicates": duplicate_share(shown),
                "near_copies": float((nearest <= near).mean()),
                "nearest_training_distance": float(np.median(nearest)),
            }
        )
    report(progress, "evaluating", len(sets), len(sets))
    return EvaluationResult(
        extractor=classifier.name,
        sha256=classifier.sha256,
        images=len(held_out),
        k=k,
        resolution=held_out.resolution,
        channels=held_out.channels,
        seed=seed,
        table=tuple(table),
    )
