"""Images that cannot be read: named in the log, and refused once they are too many."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagegen.images import ImageData, UnreadableImageError
from rqtoolkit.errors import ArtifactError

__all__ = ["BrokenImages", "check_broken", "warn_broken"]

_log = logging.getLogger("imagegen.data")


def check_broken(broken: Sequence[str], skippable: int, total: int) -> None:
    """Refuse a set once more of its images are broken than may be skipped.

    Args:
        broken: Name and reason of each.
        skippable: How many may be skipped.
        total: Images of the set.

    Raises:
        ArtifactError: If there are more; the first few are named.
    """
    if len(broken) <= skippable:
        return
    others = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    raise ArtifactError(
        f"data: {'; '.join(broken[:3])}{others} cannot be read as an image; got {len(broken)} "
        f"broken of {total}, where {skippable} may be skipped. Mend or remove them, or raise "
        f"data.corrupt."
    )


def warn_broken(broken: Sequence[str]) -> None:
    """Name skipped images in the log `imagegen.data`."""
    for name in broken:
        _log.warning("skipped an image that cannot be read: %s", name)


class BrokenImages:
    """The images of a set that could not be read so far, counted once each.

    With a file they are those that any process has met since the file was begun. Images in it that
    have been mended count no more.

    Args:
        data: The set.
        path: File with a line for each, which other processes may write as well; None is without.

    Raises:
        ArtifactError: If they are already more than may be skipped.
    """

    def __init__(self, data: ImageData, path: Path | None = None) -> None:
        self._data, self._path = data, path
        self._found: dict[int, str] = {}
        self._mended: set[int] = set()
        for row in self._written():
            try:
                data.read(row)
                self._mended.add(row)
            except UnreadableImageError as error:
                self._found[row] = str(error)
        self._check()

    def add(self, broken: Mapping[int, str]) -> None:
        """Count images, and name those in the log that are new.

        Args:
            broken: Name and reason of each, by row.

        Raises:
            ArtifactError: If there are now more than may be skipped.
        """
        fresh = {row: name for row, name in broken.items() if row not in self._found}
        if not fresh:
            return
        self._found |= fresh
        if self._path is not None:
            lines = [json.dumps({"row": row, "image": name}) for row, name in fresh.items()]
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
            for row, name in self._written().items():  # by other processes
                if row not in self._mended:
                    self._found.setdefault(row, name)
        self._check()
        warn_broken(list(fresh.values()))

    def _check(self) -> None:
        check_broken(list(self._found.values()), self._data.skippable, len(self._data))

    def _written(self) -> dict[int, str]:
        """Return what the file holds, by row; a line that a killed process cut off is left out."""
        if self._path is None or not self._path.exists():
            return {}
        found: dict[int, str] = {}
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                row, name = int(record["row"]), str(record["image"])
            except (ValueError, TypeError, KeyError):
                continue
            if 0 <= row < len(self._data):
                found[row] = name
        return found
