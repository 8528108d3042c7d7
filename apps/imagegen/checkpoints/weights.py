"""Files of tensors as the authors save them: read without running what is in them, and written."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rqtoolkit.errors import ArtifactError
from rqtoolkit.io.atomic import atomic_path

__all__ = ["check_official", "find_checkpoint", "read_weights", "write_weights"]

_LEFT = {"epoch", "state_dict", "state_dict_ema"}  # the rest is worth a note when it is ignored
_PREFIX = "module."
_ARCHIVE = b"PK\x03\x04"  # what a zip file begins with
_SHOWN = 5


def find_checkpoint(folder: Path) -> Path:
    """Return model.pt, or the one .pt file of a folder.

    Raises:
        ArtifactError: If there is none, or several.
    """
    if (folder / "model.pt").is_file():
        return folder / "model.pt"
    found = sorted(folder.glob("*.pt"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:_SHOWN]) or "none"
        raise ArtifactError(
            f"import: {folder} must hold model.pt, or one .pt file; got {names}. Name the one to "
            f"import model.pt."
        )
    return found[0]


def read_weights(path: Path, *keys: str) -> tuple[dict[str, Tensor], list[str]]:
    """Read the tensors of a checkpoint; what is no tensor is never run.

    A prefix "module." (a model saved in DataParallel's wrapping) is taken off where every tensor
    has it.

    Args:
        path: A file that `torch.save` wrote.
        *keys: Which of the file's dictionaries, "state_dict" or "state_dict_ema": the first of
            these that it has.

    Returns:
        Tensors by name, on the CPU, floating-point ones in float32; and notes, a sentence each.

    Raises:
        ArtifactError: If the file is missing, damaged, holds code, has no such dictionary, or a
            value that is not finite.
    """
    whole = zipfile.is_zipfile(path)
    _refuse_cut_off(path, whole)
    try:
        with warnings.catch_warnings():  # torch thinks aloud of pickles that it then refuses
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except Exception as error:  # a damaged pickle fails in any way
        found = re.search(r"WeightsUnpickler error: (.*)", str(error))
        reason = " ".join((found[1] if found else str(error)).split()) or type(error).__name__
        raise ArtifactError(
            f"import: {path} is no readable checkpoint of tensors alone; got: {reason:.160}. "
            f"Nothing in it was run. Take the file as it was released."
        ) from None
    content = content if isinstance(content, dict) else {}
    key = next((key for key in keys if content.get(key)), keys[0])
    state = content.get(key)
    if not isinstance(state, dict) or not state:
        have = ", ".join(str(name) for name in list(content)[:_SHOWN]) or "no dictionary"
        ema = bool(content.get("state_dict_ema"))
        advice = "Import it with --ema." if ema else "Take the file as it was released."
        raise ArtifactError(f"import: {path} has no {key}; got {have}. {advice}")
    notes = []
    ignored = sorted(str(name) for name in content.keys() - _LEFT)
    if ignored:
        notes.append(f"{path.name}: ignored {', '.join(ignored)}")
    for other in sorted({"state_dict", "state_dict_ema"} & content.keys() - {key}):
        notes.append(f"{path.name}: took {key}, not {other}")
    if all(str(name).startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    return {name: _sound(path, name, tensor) for name, tensor in state.items()}, notes


def _refuse_cut_off(path: Path, whole: bool) -> None:
    """Refuse an archive without its end, of which torch says but that an argument is invalid."""
    with path.open("rb") as file:
        is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    if is_archive and not whole:
        raise ArtifactError(
            f"import: {path} is cut off or damaged; got {path.stat().st_size:,} bytes without the "
            f"end of the archive. Compare its size with the released file's, and fetch it again."
        )


def _sound(path: Path, name: str, tensor: object) -> Tensor:
    """Return a tensor of its own memory: the file may go while the model lives."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_complex():
        raise ArtifactError(
            f"import: {path}: {name} must be a dense tensor; got {type(tensor).__name__}. Take the "
            f"file as it was released."
        )
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ArtifactError(
            f"import: {path}: {name} holds values that are not finite; got NaN or infinity. Take "
            f"the file as it was released."
        )
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=True).contiguous()


def check_official(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are missing, left over or misshaped, naming them.

    Args:
        path: File they came from, for the message.
        expected: What its config.yaml asks for.
        found: What was read.

    Raises:
        ArtifactError: If names or shapes differ.
    """
    misshaped = [
        f"{name} of shape {tuple(found[name].shape)} in place of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    complaints = [
        *_first("missing", [name for name in expected if name not in found]),
        *_first("unexpected", [name for name in found if name not in expected]),
        *_first("misshaped", misshaped),
    ]
    if complaints:
        raise ArtifactError(
            f"import: {path} does not fit the config.yaml beside it; got {'; '.join(complaints)}. "
            f"Take both from one release."
        )


def _first(title: str, names: list[str]) -> list[str]:
    """Return a line with the first of some names, none for no names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{title} {', '.join(names[:_SHOWN])}{more}"] if names else []


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as the authors do, for `torch.load(path)["state_dict"]`."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # A file, not its name: the name would become part of the content.
        torch.save({"epoch": 0, "state_dict": dict(state)}, file)
