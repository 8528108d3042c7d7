"""The demo: both stages on real digits, then samples, scores and a report, in one folder."""

import shutil
from pathlib import Path
from time import perf_counter
from typing import Any

from imagegen.config import load_config
from imagegen.jobs import train_run
from imagegen.runs import LOCK, Run, deferred_interrupt, exclusive
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

    The work is done in `.NAME.unfinished` beside the folder, which takes its place at the end: what
    an earlier demo left stays until there is something new.

    Args:
        out: Folder for the run and its report. An earlier run of `digits` there is replaced where
            it differs in the seed, the device or `quick` alone; any other is refused.
        seed: Fixes everything but the split into training and held-out images, which is fixed.
        quick: Train for a tenth of the steps.
        progress: Called as progress(description, done, total).

    Returns:
        What metrics.json holds.

    Raises:
        ConfigError: If `out` holds anything else, or another process works on it.
    """
    begun, out = perf_counter(), Path(out)
    overrides = {"seed": seed, **(_QUICK if quick else {})}
    config = load_config("digits", overrides=overrides)
    _check_own(out)
    Run.check(out, config, replace=True)
    unfinished = out.absolute().with_name(f".{out.absolute().name}.unfinished")
    with exclusive(out):
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            run = train_run(config, unfinished, progress=progress)
            command = f"rqtool demo --out NEW --seed {seed}{' --quick' if quick else ''}"
            metrics = evaluate_run(run, progress=progress, since=begun, commands=[command])
            _move(unfinished, out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return metrics


def _move(new: Path, out: Path) -> None:
    """Put what was made in the place of an earlier demo; what is not the demo's own stays."""
    earlier = new.with_name(f"{new.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    earlier.mkdir()
    with deferred_interrupt():  # renames only, so Ctrl-C waits for moments
        for path in [path for path in new.iterdir() if path.name != LOCK]:
            if (out / path.name).exists():
                (out / path.name).replace(earlier / path.name)
            path.replace(out / path.name)
    shutil.rmtree(earlier)


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
