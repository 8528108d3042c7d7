"""Names of versions that follow from what they hold: equal histories have equal uuids."""

import hashlib
import uuid
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids.standardize import Standardization

__all__ = ["fingerprint", "next_version"]

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pypi.org/project/rqtoolkit#semantic-ids")


def fingerprint(quantizer: Quantizer, standardization: Standardization) -> bytes:
    """Return a digest of all that decides how vectors are encoded and decoded."""
    digest = hashlib.sha256()
    arguments, tensors = quantizer.stored()
    digest.update(f"{type(quantizer).__name__} {sorted(arguments.items())}".encode())
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().reshape(-1)
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    digest.update(standardization.center.tobytes())
    digest.update(standardization.scale.tobytes())
    return digest.digest()


def next_version(parent: str | None, event: str, content: Iterable[bytes | NDArray]) -> str:
    """Name a version by the one before and what changed.

    Args:
        parent: The version before; None of the first.
        event: What was done.
        content: What it was done with.

    Returns:
        A uuid as a string.

    References:
        RFC 9562, "Universally Unique IDentifiers", version 5.
    """
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str} {part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        digest.update(part)
    return str(uuid.uuid5(_NAMESPACE, f"{parent} {event} {digest.hexdigest()}"))
