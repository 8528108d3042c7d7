"""Images that cannot be read: named in the log, and refused once they are too many."""

import logging
from collections.abc import Sequence

from rqtoolkit.errors import ArtifactError

__all__ = ["check_broken", "warn_broken"]

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
