"""Indexes of large archives, built once and kept in the user's cache folder."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rqtoolkit.errors import ArtifactError
from rqtoolkit.io.atomic import atomic_path

__all__ = ["cache_folder", "cached_index"]

VERSION = 1  # of what the indexes hold


def cache_folder() -> Path:
    """Return where indexes are kept: RQTOOLKIT_CACHE, or rqtoolkit in the user's cache folder."""
    own = os.environ.get("RQTOOLKIT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rqtoolkit"


def cached_index(
    path: Path, kind: str, build: Callable[[Path], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the index of a file: from the cache if the file is as it was, else built anew.

    What identifies a file is its path, its size and its time of modification. Where the cache
    cannot be written, the index is built every time.

    Args:
        path: The file.
        kind: What the index holds; a file may have several.
        build: Reads the file.

    Returns:
        Arrays by name.
    """
    stat = path.stat()
    identity = f"{VERSION} {kind} {path.absolute()} {stat.st_size} {stat.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    cached = cache_folder() / f"{kind}-{digest[:32]}.npz"
    if cached.is_file():
        try:
            with cached.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            pass  # damaged: built again
    index = build(path)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(cached) as temporary:
            np.savez(temporary, allow_pickle=False, **index)
    except (OSError, ArtifactError):
        pass  # a cache that cannot be written costs time and nothing else
    return index
