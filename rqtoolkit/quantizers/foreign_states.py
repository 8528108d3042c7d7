"""State dicts of other packages: read, taken out of what wraps them, and searched by name."""

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rqtoolkit.errors import ArtifactError

__all__ = ["State", "named", "refuse_rest", "section_of", "tensors_of", "under"]

State = Mapping[str, Any] | str | Path
"""Tensors by name, or a file of them (safetensors, or what `torch.save` wrote)."""

_WRAPPERS = ("state_dict", "best_state", "model")  # of DAC, audiocraft and many a trainer


def tensors_of(state: State, where: str) -> dict[str, Tensor]:
    """Return tensors by name, from a file where one is named, out of what trainers wrap them in.

    Raises:
        ArtifactError: If the file is missing, or holds anything but tensors and plain values.
    """
    found = _read(Path(state), where) if isinstance(state, str | Path) else state
    for wrapper in _WRAPPERS:
        inner = found.get(wrapper)
        found = inner if isinstance(inner, Mapping) else found
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _read(path: Path, where: str) -> Mapping[str, Any]:
    if not path.is_file():
        raise ArtifactError(f"{where}: {path} does not exist. Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content if isinstance(content, Mapping) else {}
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{where}: {path} is no file of tensors alone; got "
            f"{str(error).splitlines()[0]} Save module.state_dict()."
        ) from error


def section_of(
    tensors: Mapping[str, Tensor], mark: str, prefix: str, where: str
) -> dict[str, Tensor] | None:
    """Return the tensors of the one quantizer that has a name like `mark`, or None without any.

    Args:
        tensors: By name.
        mark: Regular expression of the name, as the quantizer itself gives it.
        prefix: What the names begin with.
        where: Function, for the message.

    Raises:
        ArtifactError: If there are several.
    """
    marked = (re.fullmatch(rf"((?:.*\.)?){mark}", name) for name in tensors)
    homes = sorted({match[1] for match in marked if match and match[1].startswith(prefix)})
    if len(homes) > 1:
        raise ArtifactError(
            f"{where}: state has several quantizers; got {homes}. Pass one of them as prefix."
        )
    return under(tensors, homes[0]) if homes else None


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def refuse_rest(section: Mapping[str, Tensor], known: set[str], where: str) -> None:
    """Refuse a state with other names than those known.

    Raises:
        ArtifactError: If there are any.
    """
    rest = [name for name in section if name not in known]
    if rest:
        raise ArtifactError(
            f"{where}: state has parts that our quantizers do not; got {named(rest)}. Networks and "
            "affine maps over codebooks, rotations and the like cannot be imported."
        )


def named(names: Iterable[str]) -> str:
    """List the first few names, for messages."""
    first = list(names)
    rest = f" and {len(first) - 4} more" if len(first) > 4 else ""
    return ", ".join(first[:4]) + rest or "nothing"
