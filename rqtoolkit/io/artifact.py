"""The one file format of everything trained: safetensors with a header that says what it holds.

The metadata header has `format`, `version`, `class` and `arguments` (constructor arguments, JSON).
Nothing is ever unpickled, and equal content gives equal bytes.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rqtoolkit.errors import ArtifactError, RQToolkitError
from rqtoolkit.functional.devices import check_device
from rqtoolkit.io.atomic import atomic_path

__all__ = [
    "artifact_class",
    "check_tensors",
    "constructing",
    "differences",
    "read_artifact",
    "write_artifact",
]

_FORMAT = "rqtoolkit"
_VERSION = "1"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_artifact(
    path: str | Path, *, class_name: str, arguments: dict[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write tensors with the name and constructor arguments of what they belong to, atomically.

    The bytes are laid out here and not by safetensors, whose header comes in random order: equal
    content has to give equal files.

    Args:
        path: File to write, usually `*.safetensors`; an existing one is replaced.
        class_name: What `read_artifact` will ask for.
        arguments: Constructor arguments; numbers, strings, booleans, None, lists and dicts of them.
        tensors: Tensors of any shape on any device; views of one storage are written one by one.

    Raises:
        ArtifactError: If the folder is missing.
        TypeError: If an argument is not JSON or a tensor has a dtype the format lacks.

    References:
        safetensors format, https://huggingface.co/docs/safetensors
    """
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "class": class_name,
        "arguments": json.dumps(arguments, allow_nan=False),
    }
    # Widest dtypes first keeps every tensor aligned to its own size, as the format asks.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"write_artifact: tensor {name} has dtype {tensor.dtype}")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def read_artifact(
    path: str | Path, *, class_name: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the arguments and tensors that `write_artifact` stored.

    Args:
        path: File to read.
        class_name: Class the file must hold.
        device: Where the tensors go.

    Returns:
        Constructor arguments, and the tensors by name.

    Raises:
        ArtifactError: If the file is missing, unreadable, truncated, foreign, of an unknown
            version, or holds another class.
        ConfigError: If the device is unknown or not there.
    """
    check_device(f"{class_name}.load", device)
    where = f"{class_name}.load: {path}"
    with _opened(path, where, device) as file:
        metadata = _checked(file.metadata() or {}, where)
        if metadata.get("class") != class_name:
            raise ArtifactError(
                f"{where} holds another class; got class={metadata.get('class')!r}. "
                f"Name a file written by {class_name}.save."
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return _arguments(metadata, where), tensors


def artifact_class(path: str | Path) -> str:
    """Return the name of the class that a file holds; errors as in `read_artifact`."""
    with _opened(path, f"load: {path}") as file:
        return _checked(file.metadata() or {}, f"load: {path}").get("class", "")


@contextmanager
def _opened(path: str | Path, where: str, device: str | torch.device = "cpu") -> Iterator[Any]:
    """Open a safetensors file, or say why not; also if reading on fails in the block."""
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{where} does not exist. Check the path.")
    if path.is_dir():
        raise ArtifactError(f"{where} is a folder. Name the .safetensors file in it.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{where} is not a readable safetensors file, or is truncated; got {error}. "
            "Write it again, or name another file."
        ) from error


def _checked(metadata: Mapping[str, str], where: str) -> Mapping[str, str]:
    if metadata.get("format") != _FORMAT:
        raise ArtifactError(
            f"{where} is a safetensors file, but not one of rqtoolkit; "
            f"got format={metadata.get('format')!r}. Name a file written by save()."
        )
    if metadata.get("version") != _VERSION:
        raise ArtifactError(
            f"{where} has an unknown version; got version={metadata.get('version')!r}, "
            f"this rqtoolkit reads {_VERSION!r}. Update rqtoolkit."
        )
    return metadata


def _arguments(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    try:
        arguments = json.loads(metadata.get("arguments", ""))
    except json.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ArtifactError(f"{where} has damaged arguments in its header. Write it again.")
    return arguments


@contextmanager
def constructing(path: str | Path) -> Iterator[None]:
    """Turn the errors of a constructor called with a header's arguments into one about the file.

    Args:
        path: File the arguments came from, for the message.

    Raises:
        ArtifactError: If the block raises because an argument is missing, unknown or impossible.
    """
    try:
        yield
    except (TypeError, ValueError, RQToolkitError) as error:
        raise ArtifactError(
            f"load: {path} has arguments that make no object; got: {error} Write it again."
        ) from error


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Say which tensors are missing, left over or misshaped, a phrase each.

    Args:
        expected: What there should be, by name.
        found: What there is.
    """
    complaints = [f"missing {name}" for name in expected if name not in found]
    complaints += [f"unexpected {name}" for name in found if name not in expected]
    complaints += [
        f"{name} has shape {tuple(found[name].shape)} in place of {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    return complaints


def check_tensors(
    path: str | Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that are missing, left over or misshaped, naming each.

    Args:
        path: File they came from, for the message.
        expected: What the constructed object has, as in `module.state_dict()`.
        found: What was read.

    Raises:
        ArtifactError: If names or shapes differ.
    """
    complaints = differences(expected, found)
    if complaints:
        shown = "; ".join(complaints[:5]) + (
            f"; and {len(complaints) - 5} more" * (len(complaints) > 5)
        )
        raise ArtifactError(
            f"load: {path} does not hold what its header says; got {shown}. Write it again."
        )
