"""Outputs that appear whole or not at all."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rqtoolkit.errors import ArtifactError

__all__ = ["atomic_folder", "atomic_path", "check_output"]

_ABANDONED = 24 * 3600  # seconds without a change; no process is known to be at work on it still


def _temporary(path: Path) -> Path:
    # The suffix stays last: np.save and matplotlib choose the format by it.
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")


def _has_no_name(path: Path) -> bool:
    """Tell devices, pipes and the like, of which there is nothing to replace: /dev/stdout."""
    return path.exists() and not path.is_dir() and not path.resolve().is_file()


def _last_change(path: Path) -> float:
    within = path.rglob("*") if path.is_dir() else ()
    return max(some.lstat().st_mtime for some in (path, *within))


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed left of this output, and nobody has touched since."""
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    ours = re.compile(rf"\.{stem}\.[0-9a-f]{{8}}\.partial{suffix}")
    with suppress(OSError):  # another process may be removing them too
        for other in path.parent.iterdir():
            if ours.fullmatch(other.name) and time.time() - _last_change(other) > _ABANDONED:
                if other.is_dir():
                    shutil.rmtree(other, ignore_errors=True)
                else:
                    other.unlink(missing_ok=True)


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise ArtifactError(
            f"output: {path} cannot be written; got no folder {path.parent}. Make it first."
        )


def _flush_folder(path: Path) -> None:
    """Have a folder's entries written to disk, so that a power cut does not undo a renaming."""
    if os.name != "posix":  # Windows opens no folders
        return
    with suppress(OSError):  # some file systems cannot; the file is in its place all the same
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output(path: str | Path) -> Path:
    """Return `path` if a file can be written there; a long job asks before it starts.

    Args:
        path: File to write; its folder has to exist. Also a device or a pipe.

    Raises:
        ArtifactError: If the folder is missing or cannot be written, or `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ArtifactError(f"output: {path} is a folder; got a file to write. Name a file in it.")
    if _has_no_name(path):
        if not os.access(path, os.W_OK):
            raise ArtifactError(f"output: {path} cannot be written. Choose another place or name.")
        return path
    _check_parent(path.resolve())
    temporary = _temporary(path.resolve())
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise ArtifactError(
            f"output: {path} cannot be written; got {error.strerror}. Choose another place or name."
        ) from error
    return path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it when the block ends without an exception.

    An existing file stays as it was until then. After any exception, Ctrl-C included, the temporary
    file is removed; what a killed process left goes with the first output of that name a day later.
    Of a link, the file it leads to is replaced. What cannot be replaced, a device or a pipe, is
    yielded itself.

    Args:
        path: File to write; its folder has to exist.

    Raises:
        ArtifactError: If the folder is missing, or `path` is a folder.

    Example:
        >>> with atomic_path("codes.npy") as temporary:
        ...     np.save(temporary, codes)
    """
    path = check_output(path)
    if _has_no_name(path):
        yield path
        return
    path = path.resolve()
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a power cut may leave an empty file, renamed
        temporary.replace(path)
        _flush_folder(path.parent)
        _remove_leftovers(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, renamed to it when the block ends without exception.

    Nothing is ever replaced: `path` has to be new or an empty folder. After any exception, Ctrl-C
    included, the temporary folder is removed with all that is in it; after a kill as `atomic_path`.

    Args:
        path: Folder to make; its parent has to exist.

    Raises:
        ArtifactError: If the parent is missing, or `path` exists and is not an empty folder.
    """
    path = Path(path)
    _check_parent(path.resolve())
    if path.exists() and not path.is_dir():
        raise ArtifactError(
            f"output: {path} must be a new folder; got a file. Choose another name."
        )
    if path.exists() and any(path.iterdir()):
        raise ArtifactError(
            f"output: folder {path} exists and is not empty. Choose another, or remove it first."
        )
    path = path.resolve()
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(path)
        _remove_leftovers(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
