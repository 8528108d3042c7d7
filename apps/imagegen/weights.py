"""Public weight files: read without running anything in them, checked by name and shape."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rqtoolkit.errors import ArtifactError

__all__ = ["file_sha256", "fill_weights", "read_weights"]


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: str | Path, *, where: str) -> dict[str, Tensor]:
    """Read tensors by name from a .pth or .safetensors file; nothing in the file is run.

    Args:
        path: The file. A state dict may lie under the key `state_dict`.
        where: Whose weights they are, for messages.

    Raises:
        ArtifactError: If the file is missing, damaged, or holds anything but tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{where}: {path} is no file. Check the path.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        raise ArtifactError(
            f"{where}: {path} cannot be read as weights; got no file of plain tensors "
            f"({type(error).__name__}). Fetch it again."
        ) from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ArtifactError(
            f"{where}: {path} must hold tensors by name; got {type(found).__name__}. Pass the "
            f"file of weights itself."
        )
    return dict(found)


def fill_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], *, path: str | Path, where: str
) -> None:
    """Put tensors in a module, every one of them and no other.

    Batch normalisation's counters of training steps may be there or not: nothing needs them.

    Raises:
        ArtifactError: If a tensor is missing, left over or misshaped; it is named.
    """
    counters = {name for name in module.state_dict() if name.endswith("num_batches_tracked")}
    expected = {n: t for n, t in module.state_dict().items() if n not in counters}
    found = {n: t for n, t in tensors.items() if n not in counters}
    complaints = [f"no {name}" for name in expected if name not in found]
    complaints += [f"unknown {name}" for name in found if name not in expected]
    complaints += [
        f"{name} of shape {tuple(found[name].shape)} in place of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if complaints:
        more = f" and {len(complaints) - 4} more" if len(complaints) > 4 else ""
        raise ArtifactError(
            f"{where}: {path} holds weights of another network; got "
            f"{', '.join(complaints[:4])}{more}. Pass the file named in the documentation."
        )
    module.load_state_dict(found, strict=False)
