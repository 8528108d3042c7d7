"""The demo: both stages on real digits, then samples, scores and a report, in one folder."""

from pathlib import Path
from time import perf_counter
from typing import Any

from imagegen.config import load_config
from imagegen.jobs import train_run
from imagegen.scoring import evaluate_run
from rqtoolkit.functional.progress import Progress

__all__ = ["run_demo"]

_QUICK = {
    "stage1.steps": 200,
    "stage1.sample_every": 200,
    "stage2.steps": 200,
    "stage2.sample_every": 200,
}


def run_demo(
    out: str | Path, *, seed: int = 0, quick: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Train, sample and evaluate the shipped configuration `digits`.

    Args:
        out: Folder for the run and its report; an earlier run there is replaced.
        seed: Fixes everything but the split into training and held-out images, which is fixed.
        quick: Train for a tenth of the steps.
        progress: Called as progress(description, done, total).

    Returns:
        What metrics.json holds.
    """
    begun = perf_counter()
    overrides = {"seed": seed, **(_QUICK if quick else {})}
    config = load_config("digits", overrides=overrides)
    run = train_run(config, out, replace=True, progress=progress)
    return evaluate_run(run, progress=progress, since=begun)
