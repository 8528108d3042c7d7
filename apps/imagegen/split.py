"""What a run was trained on and what it held out, as fingerprints in its split.json.

Changed data change the split: an image that was trained on could turn up among the held-out ones
and flatter every figure. So a run goes on, and is scored, with the images it began with alone.
"""

import json
from pathlib import Path
from typing import Any

from imagegen.images import ImageData
from rqtoolkit.errors import ArtifactError, DataError
from rqtoolkit.io.atomic import atomic_path

__all__ = ["check_split", "read_split", "write_split"]


def write_split(folder: str | Path, train: ImageData, held_out: ImageData) -> None:
    """Write split.json into the folder of a run: a fingerprint of each set, and their classes."""
    with atomic_path(Path(folder) / "split.json") as temporary:
        text = json.dumps(_describe(train, held_out), indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_split(folder: str | Path) -> dict[str, Any] | None:
    """Return what `write_split` wrote; None for runs without it.

    Raises:
        ArtifactError: If the file is damaged.
    """
    path = Path(folder) / "split.json"
    if not path.exists():
        return None
    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        return {name: split[name] for name in ("train", "held_out", "classes")}
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"run: {path} is damaged; got {type(error).__name__}. Train in a new folder."
        ) from None


def check_split(folder: str | Path, train: ImageData, held_out: ImageData) -> None:
    """Refuse images other than those the run in `folder` began with; new folders take any.

    Raises:
        DataError: If the training or the held-out images differ.
        ArtifactError: If split.json is damaged.
    """
    before, now = read_split(folder), _describe(train, held_out)
    if before is None:
        return
    changed = [name for name in ("train", "held_out") if before[name] != now[name]]
    if changed or before["classes"] != now["classes"]:
        raise DataError(
            f"run: {folder} was trained on other images; got data whose split.json would differ in "
            f"{', '.join(changed) or 'classes'}. Bring the old images back with --data, or train "
            f"in a new folder."
        )


def _describe(train: ImageData, held_out: ImageData) -> dict[str, Any]:
    return {
        "train": train.fingerprint(),
        "held_out": held_out.fingerprint(),
        "classes": train.num_classes,
    }
