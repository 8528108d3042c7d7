"""The one way long jobs report how far they are."""

from collections.abc import Callable

__all__ = ["Progress", "report"]

Progress = Callable[[str, int, int], None]
"""Called as `progress(description, done, total)`; `done == total` ends that stretch of work."""


def report(progress: Progress | None, description: str, done: int, total: int) -> None:
    """Call `progress` unless it is None."""
    if progress is not None:
        progress(description, done, total)
