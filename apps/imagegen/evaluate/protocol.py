"""The protocol of a score: all that must be equal before two scores may be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from imagegen.evaluate.extractors import Extractor
from rqtoolkit import __version__

__all__ = ["Protocol", "Scores", "describe_extractor", "tables_of_one_protocol"]

ROUNDING = "to uint8, nearest level, halves to even"


def _versions() -> dict[str, str]:
    return {
        "rqtoolkit": __version__,
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
    }


@dataclass(frozen=True)
class Protocol:
    """How a score was measured; written beside every one.

    Attributes:
        compared: What was scored: "samples", "reconstructions", "codes".
        images: How many of them.
        reference: What they were compared with, in words; "" where with nothing.
        reference_fingerprint: Hash of the reference set with its labels and texts: of the pixels,
            or of paths and sizes where images are read from files as they are needed; or of the
            file that holds its statistics.
        reference_images: How many images the reference has; None where its file does not say.
        resolution: Height and width of the images scored.
        extractor: Name and SHA-256 of the network looked through; None without one.
        resize: How images reached the extractor's size.
        rounding: How decoded images became integers.
        seed: Of the samples; None where nothing was drawn.
        sampler: Sampling settings; None where nothing was drawn.
        settings: Numbers that belong to the scores: neighbours, splits, subsets.
        versions: Of the libraries. They do not count as a difference.
    """

    compared: str
    images: int
    resolution: tuple[int, int]
    reference: str = ""
    reference_fingerprint: str = ""
    reference_images: int | None = None
    extractor: Mapping[str, str] | None = None
    resize: str = "none"
    rounding: str = ROUNDING
    seed: int | None = None
    sampler: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=_versions)

    def differences(self, other: Protocol) -> list[str]:
        """Return the names of what differs from another protocol, versions aside.

        Scores compare only where this is empty, or where what differs is the very thing compared.
        """
        mine, theirs = self.to_json(), other.to_json()
        return [name for name in mine if name != "versions" and mine[name] != theirs[name]]

    def to_json(self) -> dict[str, Any]:
        """Return as plain values, as JSON reads them back."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Protocol:
        """Return what `to_json` gave."""
        height, width = found["resolution"]
        return cls(**{**found, "resolution": (height, width)})


@dataclass(frozen=True)
class Scores:
    """Figures that share a protocol.

    Attributes:
        name: What they are called together: "rFID", "gFID", "reconstruction", "codes".
        values: By name, a number, or one a depth.
        protocol: How they were measured.
    """

    name: str
    values: Mapping[str, Any]
    protocol: Protocol

    def to_json(self) -> dict[str, Any]:
        """Return as plain values."""
        return {"name": self.name, **self.values, "protocol": self.protocol.to_json()}


def describe_extractor(extractor: Extractor) -> dict[str, str]:
    """Return an extractor's name and hash, as a protocol holds them."""
    return {"name": extractor.name, "sha256": extractor.sha256}


def tables_of_one_protocol(scores: Sequence[Scores]) -> list[list[Scores]]:
    """Return scores in groups whose protocols agree, in order: each group may be one table."""
    groups: list[list[Scores]] = []
    for score in scores:
        for group in groups:
            if not group[0].protocol.differences(score.protocol):
                group.append(score)
                break
        else:
            groups.append([score])
    return groups
