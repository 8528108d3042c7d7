"""What an extractor says of a set beside a reference: rFID, gFID and what goes with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from imagegen.evaluate.extractors import Extractor
from imagegen.evaluate.frechet import gaussian_distance
from imagegen.evaluate.inception_score import SPLITS, inception_score
from imagegen.evaluate.kernel import SUBSET_SIZE, SUBSETS, kernel_distance
from imagegen.evaluate.neighbours import neighbour_scores
from imagegen.evaluate.protocol import Protocol, Scores, describe_extractor
from imagegen.evaluate.reference import Reference
from imagegen.evaluate.statistics import MOST_FEATURES, FeatureStatistics, gather_statistics
from rqtoolkit.functional.progress import Progress

__all__ = ["SUITE_NEIGHBOURS", "score_reconstructions", "score_samples"]

SUITE_NEIGHBOURS = 3  # as Kynkäänniemi et al. and the ADM evaluation suite
KERNEL = f"{SUBSETS} subsets of {SUBSET_SIZE}, or of half the smaller set, seed 0"
BATCH = 500


def score_reconstructions(
    extractor: Extractor,
    reference: Reference,
    reconstructions: np.ndarray,
    *,
    progress: Progress | None = None,
) -> Scores:
    """Score reconstructions against the images they were made of: rFID.

    It is no bound of gFID: another reference set, another number of images.

    Args:
        extractor: Looks at the images.
        reference: Of the originals.
        reconstructions: Shape (N, H, W, C), uint8.
        progress: Called as progress(description, done, total).

    Returns:
        `frechet_distance`, and the kernel distance with its spread where there is one.
    """
    seen = _look(extractor, reconstructions, "reconstructions", progress)
    settings = {"kernel": KERNEL}
    return Scores(
        "rFID",
        _distances(reference.statistics, seen),
        _protocol("reconstructions", extractor, reference, reconstructions, settings),
    )


def score_samples(
    extractor: Extractor,
    reference: Reference,
    samples: np.ndarray,
    *,
    seed: int | None,
    sampler: Mapping[str, Any] | None,
    progress: Progress | None = None,
) -> Scores:
    """Score samples against a reference: gFID, Inception score, precision, recall and the rest.

    Args:
        extractor: Looks at the images.
        reference: Usually of the training images.
        samples: Shape (N, H, W, C), uint8; may be memory-mapped.
        seed: They were drawn with; None where it is not known.
        sampler: Settings they were drawn with; None where they are not known.
        progress: Called as progress(description, done, total).

    Returns:
        `frechet_distance`, `inception_score` with its spread, and where the reference has features
        the kernel distance, precision, recall, density and coverage.
    """
    seen = _look(extractor, samples, "samples", progress)
    assert seen.features is not None
    splits = min(SPLITS, len(seen.features))
    score, spread = inception_score(extractor.probabilities(seen.features), splits=splits)
    values = {
        **_distances(reference.statistics, seen),
        "inception_score": score,
        "inception_score_std": spread,
    }
    known, some, k = reference.statistics.features, _some(seen.features), SUITE_NEIGHBOURS
    if known is not None and min(len(known), len(seen.features)) > k:
        found = neighbour_scores(_some(known), some, k=k)
        values |= {
            "precision": found.precision,
            "recall": found.recall,
            "density": found.density,
            "coverage": found.coverage,
        }
    settings = {
        "kernel": KERNEL,
        "inception_score": f"{splits} parts in random order, seed 0",
        "neighbours": k,
        "neighbours_among": [0 if known is None else len(_some(known)), len(some)],
    }
    return Scores(
        "gFID",
        values,
        _protocol("samples", extractor, reference, samples, settings, seed=seed, sampler=sampler),
    )


def _distances(reference: FeatureStatistics, seen: FeatureStatistics) -> dict[str, float]:
    values = {
        "frechet_distance": gaussian_distance(
            reference.mean, reference.covariance, seen.mean, seen.covariance
        )
    }
    if reference.features is not None and seen.features is not None:
        mean, spread = kernel_distance(reference.features, seen.features)
        values["kernel_distance"] = mean
        if spread is not None:
            values["kernel_distance_std"] = spread
    return values


def _some(features: np.ndarray) -> np.ndarray:
    """Return as many features as neighbours are looked for among: ten thousand, evenly spread."""
    if len(features) <= MOST_FEATURES:
        return features
    return features[np.linspace(0, len(features) - 1, MOST_FEATURES).round().astype(int)]


def _look(
    extractor: Extractor, images: np.ndarray, title: str, progress: Progress | None
) -> FeatureStatistics:
    # The Inception score wants the features of all samples, 50,000 of them as a rule.
    return gather_statistics(
        extractor,
        _batches(images),
        total=len(images),
        most_features=50_000,
        title=f"looking at {title}",
        progress=progress,
    )


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), BATCH):
        yield np.asarray(images[start : start + BATCH])


def _protocol(
    compared: str,
    extractor: Extractor,
    reference: Reference,
    images: np.ndarray,
    settings: Mapping[str, Any],
    **drawn: Any,
) -> Protocol:
    height, width = images.shape[1:3]
    return Protocol(
        compared=compared,
        images=len(images),
        resolution=(height, width),
        reference=reference.name,
        reference_fingerprint=reference.fingerprint,
        reference_images=reference.images,
        extractor=describe_extractor(extractor),
        resize=extractor.resize,
        settings=settings,
        **drawn,
    )
