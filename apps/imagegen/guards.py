"""Stops a training that diverges before it spoils a checkpoint, and work that lacks room."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from imagegen.checkpointing import checkpoints
from imagegen.runs import Run
from imagegen.settings import StageConfig
from rqtoolkit.errors import ArtifactError, ConfigError, DataError

__all__ = ["DivergenceGuard", "enough_memory", "enough_room"]

# Torch has a class for want of memory on accelerators only.
_SHORTAGES = ("not enough memory", "can't allocate memory", "out of memory", "size calculation")


class DivergenceGuard:
    """Watches the loss and the gradient norms of every step.

    A GPU works behind the program that feeds it, and must not wait. So a step is judged when the
    next one has been handed over, and at once only before its state is logged or saved.

    Args:
        run: For the message.
        stage: 1 or 2.
        config: Limits beyond which loss or norm end the run; numbers that are not finite always do.
    """

    def __init__(self, run: Run, stage: int, config: StageConfig) -> None:
        self.run, self.stage = run, stage
        self.loss_limit, self.gradient_limit = config.loss_limit, config.gradient_limit
        self.waiting: tuple[int, list[str], Tensor] | None = None

    def watch(self, step: int, loss: Tensor, norms: Mapping[str, Tensor]) -> None:
        """Take in a step and judge the one before it.

        Args:
            step: Steps done.
            loss: Scalar, the same in every process.
            norms: Norm of each model's gradients by its name, likewise.

        Raises:
            DataError: If the step before diverged.
        """
        self.judge()
        names = ["loss", *(f"gradient norm of the {name}" for name in norms)]
        values = [loss, *(norm.to(loss.device) for norm in norms.values())]
        self.waiting = step, names, torch.stack([value.float() for value in values])
        if loss.device.type == "cpu":
            self.judge()

    def judge(self) -> None:
        """Judge the last step taken in.

        Raises:
            DataError: If it diverged.
        """
        if self.waiting is None:
            return
        step, names, values = self.waiting
        self.waiting = None
        for name, value in zip(names, values.tolist(), strict=True):
            limit = self.loss_limit if name == "loss" else self.gradient_limit
            if not math.isfinite(value) or (limit is not None and value > limit):
                self._stop(step, name, value, limit)

    def _stop(self, step: int, name: str, value: float, limit: float | None) -> None:
        found, stage = checkpoints(self.run, self.stage), f"stage{self.stage}"
        good = found[-1].name if found else "none was written yet"
        kind = f"{stage}.{'loss' if name == 'loss' else 'gradient'}_limit"
        over = "" if limit is None or not math.isfinite(value) else f", over {kind}={limit:g}"
        raise DataError(
            f"train: stage {self.stage} of {self.run.path} diverged; got a {name} of {value:g} at "
            f"step {step}{over}. Lower {stage}.learning_rate or {stage}.clip_norm, or lengthen "
            f"{stage}.warmup_steps, in a new run. Last good checkpoint: {good}."
        )


@contextmanager
def enough_memory(doing: str, advice: str) -> Iterator[None]:
    """Turn want of memory in the block, on the host or an accelerator, into one line.

    Args:
        doing: What needs it, as "stage 1".
        advice: What to change, a sentence.

    Raises:
        ConfigError: If an allocation fails.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and not any(s in words for s in _SHORTAGES):
            raise
        raise ConfigError(
            f"train: {doing} needs more memory than there is; got {words or 'no more':.120}. "
            f"{advice}"
        ) from error


@contextmanager
def enough_room(out: Path, advice: str = "Make room, or choose another place.") -> Iterator[None]:
    """Turn a failed write in the block, as on a full disk, into one line.

    Args:
        out: What is written.
        advice: What to do, a sentence.

    Raises:
        ArtifactError: If the block raises OSError.
    """
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"output: {out} cannot be written; got {error.strerror or error}. {advice}"
        ) from error
