"""Reference sets: the statistics of real images, computed once and kept in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagegen.data.arrays import reading_npz
from imagegen.evaluate.extractors import Extractor
from imagegen.evaluate.protocol import describe_extractor
from imagegen.evaluate.statistics import FeatureStatistics, gather_statistics
from imagegen.weights import file_sha256
from rqtoolkit.errors import ArtifactError, DataError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.artifact import read_artifact, write_artifact

__all__ = ["Reference", "load_reference", "read_suite", "save_reference"]

BATCH = 500


@dataclass(frozen=True)
class Reference:
    """Statistics of a set of real images, and where they come from.

    Attributes:
        name: The set in words.
        fingerprint: As `Protocol.reference_fingerprint` says.
        images: How many images; None where the file does not say.
        statistics: What the extractor sees.
    """

    name: str
    fingerprint: str
    images: int | None
    statistics: FeatureStatistics


def save_reference(path: str | Path, reference: Reference, extractor: Extractor) -> None:
    """Write statistics with their protocol as one .safetensors artifact.

    Raises:
        ArtifactError: If the folder is missing.
    """
    statistics = reference.statistics
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance}
    if statistics.features is not None:
        tensors["features"] = statistics.features
    arguments = {
        "name": reference.name,
        "fingerprint": reference.fingerprint,
        "images": reference.images,
        "extractor": describe_extractor(extractor),
        "resize": extractor.resize,
    }
    write_artifact(
        path,
        class_name="Reference",
        arguments=arguments,
        tensors={name: torch.from_numpy(array) for name, array in tensors.items()},
    )


def load_reference(path: str | Path, extractor: Extractor) -> Reference:
    """Read what `save_reference` wrote.

    Raises:
        ArtifactError: If the file is no such artifact, or was computed through another extractor.
    """
    arguments, tensors = read_artifact(path, class_name="Reference")
    wanted = (describe_extractor(extractor), extractor.resize)
    found: tuple[Any, Any] = (arguments["extractor"], arguments["resize"])
    if found != wanted:
        raise ArtifactError(
            f"reference: {path} was computed through another extractor; got "
            f"{found[0].get('name')} ({found[0].get('sha256', '')[:8]}, {found[1]}) for "
            f"{extractor.name} ({extractor.sha256[:8]}). Compute it again."
        )
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    _check_sizes(path, arrays.get("mean"), arrays.get("covariance"), extractor)
    images = arguments["images"]
    statistics = FeatureStatistics(
        images or 0, arrays["mean"], arrays["covariance"], arrays.get("features")
    )
    return Reference(arguments["name"], arguments["fingerprint"], images, statistics)


def read_suite(
    path: str | Path, extractor: Extractor, *, progress: Progress | None = None
) -> Reference:
    """Read a reference batch in the layout of the ADM evaluation suite.

    Its .npz holds `mu` and `sigma` of the whole training set, and in `arr_0` some of its images
    (N, H, W, 3), uint8, from which precision, recall and kernel distance are computed. With images
    alone the statistics are theirs.

    Args:
        path: The .npz file.
        extractor: Looks at `arr_0`; `mu` and `sigma` are taken to come from the same network.
        progress: Called as progress(description, done, total).

    Raises:
        ArtifactError: If the file is missing or no .npz without pickles.
        DataError: If it has neither statistics nor images, or they do not fit the extractor.
    """
    path = Path(path)
    with reading_npz(path, where="reference", advice="Fetch it again") as file:
        arrays = {name: file[name] for name in ("mu", "sigma", "arr_0") if name in file.files}
    images = arrays.get("arr_0")
    if images is None and not {"mu", "sigma"} <= set(arrays):
        raise DataError(
            f"reference: {path} holds neither mu and sigma nor images; got none of mu, sigma, "
            f"arr_0. Use a reference batch of the ADM evaluation suite."
        )
    seen = None
    if images is not None:
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        seen = gather_statistics(
            extractor, parts, total=len(images), title="reference", progress=progress
        )
    fingerprint = f"file {file_sha256(path)}"
    if "mu" not in arrays or "sigma" not in arrays:
        assert seen is not None
        return Reference(path.name, fingerprint, seen.images, seen)
    _check_sizes(path, arrays["mu"], arrays["sigma"], extractor)
    mean, covariance = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
    features = None if seen is None else seen.features
    return Reference(path.name, fingerprint, None, FeatureStatistics(0, mean, covariance, features))


def _check_sizes(path: Any, mean: Any, covariance: Any, extractor: Extractor) -> None:
    dim = extractor.dim
    shapes = [None if x is None else tuple(x.shape) for x in (mean, covariance)]
    if shapes != [(dim,), (dim, dim)]:
        raise DataError(
            f"reference: {path} must hold a mean of {dim} features and their covariance, as "
            f"{extractor.name} has them; got shapes {shapes}. Use a file made for this extractor."
        )
