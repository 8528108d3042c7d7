"""Where the figures of a training go: metrics.jsonl always, TensorBoard and W&B if wanted.

A run that goes on writes again what came after its last checkpoint. No log shows a step twice:
metrics.jsonl is cut back, TensorBoard told to forget, and W&B, which cannot, spared the repetition.
"""

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagegen.checkpointing import writing
from imagegen.runs import Run
from imagegen.settings import Config
from rqtoolkit.errors import MissingDependencyError

__all__ = ["Log", "check_loggers", "open_log"]

Log = Callable[[int, Mapping[str, Any]], None]
"""Called as `log(step, figures)`: numbers, lists of them, and paths of pictures, by name."""


def check_loggers(config: Config) -> None:
    """Refuse loggers that are not installed.

    Raises:
        MissingDependencyError: Naming what to install.
    """
    wanted = {
        "tensorboard": ("torch.utils.tensorboard", config.tensorboard),
        "wandb": ("wandb", config.wandb is not None),
    }
    for name, (module, on) in wanted.items():
        if on:
            _require(name, module)


def _require(name: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"train: {name} is switched on but not installed; got: {error}. Install it with "
            f"`pip install 'rqtoolkit[logging]'`, or switch it off in the configuration."
        ) from error


@contextmanager
def open_log(run: Run, stage: int, start: int) -> Iterator[Log]:
    """Yield what logs the figures of a stage; only the first process writes.

    Args:
        run: The run, whose configuration says where to log.
        stage: 1 or 2.
        start: Steps done: what an interrupted run logged beyond them comes again.

    Raises:
        MissingDependencyError: If a logger is not installed.
        ArtifactError: If nothing can be written any more; the log does so too.
    """
    if not run.ranks.main:
        yield lambda _step, _figures: None
        return
    with ExitStack() as stack:
        logs: list[Log] = []
        if run.config.tensorboard:
            logs.append(stack.enter_context(_tensorboard(run, stage, start)))
        if run.config.wandb is not None:
            logs.append(stack.enter_context(_wandb(run, stage)))
        with writing(run, stage):
            run.forget_after(stage, start)

        def log(step: int, figures: Mapping[str, Any]) -> None:
            with writing(run, stage):
                run.log({"stage": stage, "step": step, **_readable(run, figures)})
                for other in logs:
                    other(step, figures)

        yield log


def _readable(run: Run, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures with the paths of pictures as they are within the run."""
    return {
        name: value.relative_to(run.path).as_posix() if isinstance(value, Path) else value
        for name, value in figures.items()
    }


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among figures; of lists, one a level under its own name."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, list):
            found |= {f"{name}/{level}": number for level, number in enumerate(value, start=1)}
        elif not isinstance(value, Path):
            found[name] = value
    return found


def _pictures(figures: Mapping[str, Any]) -> dict[str, Path]:
    return {name: value for name, value in figures.items() if isinstance(value, Path)}


@contextmanager
def _tensorboard(run: Run, stage: int, start: int) -> Iterator[Log]:
    """Yield what writes event files into tensorboard/ of a run."""
    module = _require("tensorboard", "torch.utils.tensorboard")
    folder = run.path / "tensorboard" / f"stage{stage}"
    writer = module.SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def log(step: int, figures: Mapping[str, Any]) -> None:
        for name, number in _numbers(figures).items():
            writer.add_scalar(name, number, step)
        for name, path in _pictures(figures).items():
            pixels = np.asarray(Image.open(path).convert("RGB"))
            writer.add_image(name, pixels, step, dataformats="HWC")
        writer.flush()

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def _wandb(run: Run, stage: int) -> Iterator[Log]:
    """Yield what sends figures to Weights & Biases, or keeps them for it in offline mode.

    Its steps only rise, so stage 2 counts on from stage 1.
    """
    wandb = _require("wandb", "wandb")
    identity = run.path / "wandb-id.txt"
    if not identity.exists():
        identity.write_text(secrets.token_hex(4), encoding="utf-8")
    session = wandb.init(
        project=run.config.wandb,
        name=run.config.name,
        id=identity.read_text(encoding="utf-8"),
        resume="allow",
        dir=str(run.path),
        config=dataclasses.asdict(run.config),
    )
    sent = {(m["step"], name) for m in run.metrics() if m["stage"] == stage for name in m}
    offset = run.config.stage1.steps if stage == 2 else 0

    def log(step: int, figures: Mapping[str, Any]) -> None:
        new = {name: value for name, value in figures.items() if (step, name) not in sent}
        values = {f"stage{stage}/{name}": value for name, value in _numbers(new).items()}
        for name, path in _pictures(new).items():
            values[f"stage{stage}/{name}"] = wandb.Image(str(path))
        if values:
            session.log(values, step=offset + step)

    try:
        yield log
    except BaseException:
        session.finish(exit_code=1)
        raise
    session.finish()
