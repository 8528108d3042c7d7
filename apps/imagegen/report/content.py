"""What a report shows, checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagegen.evaluate import EvaluationResult, Scores
from imagegen.images import ImageSet
from rqtoolkit.errors import ShapeError

__all__ = ["ReportContent"]

# By unit, by name: steps and values.
Panels = Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]


@dataclass(frozen=True)
class ReportContent:
    """Everything a report shows.

    Attributes:
        title: Heading.
        train: Training images.
        held_out: Held-out images; the Gaussian bound is theirs, and the first ten of each class
            are shown beside the samples.
        samples: The evaluated samples with the classes asked for; ten of each class are shown.
            None for a run without stage 2.
        originals: Held-out images, shape (n, H, W, C), uint8; up to ten are shown.
        reconstructions: From their first 1 … D codes, shape (D, n, H, W, C), uint8.
        relative_error: Of held-out reconstructions, one a depth.
        bits_per_image: Rate at depth 1 … D; empty for a model without codes.
        usage_counts: How often each entry was chosen, one array (K,) a depth; or empty.
        losses: By stage, then by unit, then by curve: steps and values. A unit has a panel.
        evaluation: Result of `evaluate_samples`; None for images without classes.
        bits_per_code: Held-out bits of the transformer, one a depth; or empty.
        unigram_bits_per_code: Entropy of the held-out codes, one a depth; or empty.
        scores: Further scores, each with its protocol; those of one protocol share a table.
        config: The configuration used.
        commands: What to type to get this again.
        sampling: Temperature and filters the samples were drawn with, by name.
        rate_note: What to know of the rates of this data set, plain text.
        evaluation_note: What to know of the scores on it.
        seconds: Time by part of the work.
    """

    title: str
    train: ImageSet
    held_out: ImageSet
    samples: ImageSet | None
    originals: np.ndarray
    reconstructions: np.ndarray
    relative_error: Sequence[float]
    bits_per_image: Sequence[float]
    usage_counts: Sequence[np.ndarray]
    losses: Mapping[str, Panels]
    evaluation: EvaluationResult | None
    bits_per_code: Sequence[float]
    unigram_bits_per_code: Sequence[float]
    config: Mapping[str, Any]
    commands: Sequence[str]
    scores: Sequence[Scores] = ()
    sampling: Mapping[str, str] = field(default_factory=dict)
    rate_note: str = ""
    evaluation_note: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse lists by depth of different length, empty ones aside."""
        names = ("bits_per_image", "usage_counts", "bits_per_code", "unigram_bits_per_code")
        lengths = {name: len(getattr(self, name)) for name in names if len(getattr(self, name))}
        for name in ("reconstructions", "relative_error"):
            lengths[name] = len(getattr(self, name))
        if len(set(lengths.values())) != 1:
            raise ShapeError(
                f"ReportContent: all lists by depth must be of one length; got {lengths}. "
                "Give one entry a depth."
            )
