"""Where the figures of a training go: metrics.jsonl always, TensorBoard and W&B if wanted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from imagegen.runs import Run

__all__ = ["Log", "open_log"]

Log = Callable[[int, Mapping[str, Any]], None]
"""Called as `log(step, figures)`: numbers or lists of them by name."""


@contextmanager
def open_log(run: Run, stage: int, start: int) -> Iterator[Log]:
    """Yield what logs the figures of a stage; only the first process writes.

    Args:
        run: The run.
        stage: 1 or 2.
        start: Steps done: what an interrupted run logged beyond them is forgotten.
    """
    if not run.ranks.main:
        yield lambda _step, _figures: None
        return
    run.forget_after(stage, start)

    def log(step: int, figures: Mapping[str, Any]) -> None:
        run.log({"stage": stage, "step": step, **figures})

    yield log
