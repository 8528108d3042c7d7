"""The demo: both stages on real digits, then samples, scores and a report, in one folder."""

from pathlib import Path
from time import perf_counter
from typing import Any

from imagegen.config import load_config
from imagegen.jobs import train_run
from imagegen.scoring import evaluate_run
from rqtoolkit.errors import ConfigError
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
        out: Folder for the run and its report. An earlier run of `digits` there is replaced where
            it differs in the seed, the device or `quick` alone; any other is refused.
        seed: Fixes everything but the split into training and held-out images, which is fixed.
        quick: Train for a tenth of the steps.
        progress: Called as progress(description, done, total).

    Returns:
        What metrics.json holds.

    Raises:
        ConfigError: If `out` holds anything else.
    """
    begun = perf_counter()
    overrides = {"seed": seed, **(_QUICK if quick else {})}
    config = load_config("digits", overrides=overrides)
    _check_own(Path(out))
    run = train_run(config, out, replace=True, progress=progress)
    command = f"rqtool demo --out NEW --seed {seed}{' --quick' if quick else ''}"
    return evaluate_run(run, progress=progress, since=begun, commands=[command])


def _check_own(out: Path) -> None:
    """Refuse a folder with a run that somebody configured."""
    path = out / "config.yaml"
    if not path.exists():
        return
    found = load_config(path)
    same = {"seed": found.seed, "device": found.device}
    if found not in [load_config("digits", overrides=same | steps) for steps in ({}, _QUICK)]:
        raise ConfigError(
            f"demo: {out} holds a run already that is not the demo's own; got the configuration "
            f"{found.name!r}. Choose another folder."
        )
