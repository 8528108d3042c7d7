"""The loop both stages share: schedule, averaging, checkpoints, resuming to the bit.

The randomness of a step is a function of (seed, stage, step) alone: the loop seeds torch's
generators before every step, so a resumed run needs no generator state to draw what an
uninterrupted one draws.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imagegen.runs import Run, deferred_interrupt
from imagegen.settings import StageConfig
from rqtoolkit.errors import ArtifactError, DataError
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.io.artifact import check_tensors

__all__ = ["WeightAverage", "batch_rows", "learning_rate", "step_seed", "train_loop"]

Step = Callable[[int], tuple[Tensor, Callable[[], dict[str, Any]]]]
"""Computes step i: the loss to descend, and what gives its figures when they are logged."""


def step_seed(*path: int) -> int:
    """Mix integers into one seed: equal paths give equal seeds, neighbours unrelated ones."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batch_rows(rows: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Return the rows of one batch when a shuffled data set is read over and over.

    Every row appears once per pass; a batch may span two passes.

    Args:
        rows: Rows of the data set.
        batch_size: Rows of the batch.
        step: Number of the batch, from 0.
        seed: Fixes the order of every pass.

    Returns:
        Rows, shape (batch_size,), int64.
    """
    start, stop = step * batch_size, (step + 1) * batch_size
    passes = range(start // rows, (stop - 1) // rows + 1)
    orders = [np.random.default_rng((seed, number)).permutation(rows) for number in passes]
    offset = passes[0] * rows
    return torch.from_numpy(np.concatenate(orders)[start - offset : stop - offset])


def learning_rate(config: StageConfig, step: int) -> float:
    """Return the rate of one step: linear warm-up, then constant or cosine down to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class WeightAverage:
    """Exponential moving average of a module's parameters; buffers follow as they are.

    Its memory grows with the steps, to about a ninth of them, so that early ones do not linger.

    Args:
        module: What to average.
        decay: Weight of the past; 0 keeps the current parameters.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.count = module, decay, 0
        self.values = {k: p.detach().clone() for k, p in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current parameters."""
        decay = min(self.decay, self.count / (self.count + 9))
        for name, parameter in self.module.named_parameters():
            self.values[name].lerp_(parameter.detach(), 1 - decay)
        self.count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in place of the parameters, in eval mode, while the block runs."""
        current = {k: p.detach().clone() for k, p in self.module.named_parameters()}
        was_training = self.module.training
        self._write(self.values)
        self.module.eval()
        try:
            yield
        finally:
            self._write(current)
            self.module.train(was_training)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.copy_(values[name])


def train_loop(
    run: Run,
    *,
    stage: int,
    config: StageConfig,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    compute: Step,
    observe: Callable[[int], dict[str, Any]],
    finish: Callable[[], None],
    progress: Progress | None,
) -> None:
    """Train to the configured step, from the last checkpoint where there is one.

    Args:
        run: Folder to log and save into.
        stage: 1 or 2.
        config: Length, batch, rates and intervals.
        module: What is trained; its whole state is saved.
        optimizer: Optimizer of its parameters.
        average: Average of its weights.
        compute: Gives the loss of a step; called in train mode.
        observe: Draws pictures and measures held-out data every `sample_every` steps, with the
            averaged weights in place; its figures are logged.
        finish: Writes the finished model, with the averaged weights in place.
        progress: Called as progress(description, done, total).

    Raises:
        DataError: If the loss is no longer finite.
        ArtifactError: If the last checkpoint is of another model.
        KeyboardInterrupt: On Ctrl-C, after the state was saved.
    """
    device = run.device
    start = _restore(run, stage, module, optimizer, average)
    run.forget_after(stage, start)
    description = f"Stage {stage} of 2"
    forked = [torch.cuda.current_device()] if device.type == "cuda" else []
    begun = perf_counter() - _seconds_spent(run, stage)
    with deferred_interrupt() as interrupted, torch.random.fork_rng(devices=forked):
        for step in range(start, config.steps):
            torch.manual_seed(step_seed(run.config.seed, stage, step))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            module.train()
            loss, figures = compute(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
            optimizer.step()
            average.update()
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                _check_finite(loss, run, stage, done)
                head = {"stage": stage, "step": done, "loss": loss.item(), **figures()}
                rate, seconds = learning_rate(config, step), round(perf_counter() - begun, 3)
                run.log({**head, "learning_rate": rate, "seconds": seconds})
            if done % config.sample_every == 0 or done == config.steps:
                with average.applied():
                    run.log({"stage": stage, "step": done, **observe(done)})
            report(progress, description, done, config.steps)
            stop = interrupted()
            if done % config.checkpoint_every == 0 or done == config.steps or stop:
                _check_finite(loss, run, stage, done)
                _save(run, stage, done, module, optimizer, average)
            if stop:
                raise KeyboardInterrupt
    with average.applied():
        finish()


def _seconds_spent(run: Run, stage: int) -> float:
    """Return the seconds a stage has taken up to the last line of its log."""
    lines = [m for m in run.metrics() if m["stage"] == stage and "seconds" in m]
    return float(lines[-1]["seconds"]) if lines else 0.0


def _check_finite(loss: Tensor, run: Run, stage: int, step: int) -> None:
    if not torch.isfinite(loss):
        raise DataError(
            f"train: stage {stage} of {run.path} diverged; got a loss of {loss.item()} at step "
            f"{step}. Lower stage{stage}.learning_rate or set stage{stage}.clip_norm, start anew."
        )


def _save(
    run: Run,
    stage: int,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
) -> None:
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.values.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    run.save_state(stage, {"step": step, "averaged": average.count}, tensors)


def _restore(
    run: Run,
    stage: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
) -> int:
    """Put back what `_save` wrote and return the steps done."""
    saved = run.load_state(stage)
    if saved is None:
        return 0
    arguments, tensors = saved
    check_tensors(run.state_path(stage), _expected(module, optimizer, tensors), tensors)
    if not all(isinstance(arguments.get(name), int) for name in ("step", "averaged")):
        raise ArtifactError(
            f"run: {run.state_path(stage)} is not the state of a training; got arguments "
            f"{arguments!r:.60}. Train in a new folder."
        )
    groups: dict[str, dict[str, Tensor]] = {"module": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        kind, rest = name.split(".", 1)
        groups[kind][rest] = tensor
    module.load_state_dict(groups["module"])
    average.values = {k: v.to(run.device) for k, v in groups["average"].items()}
    average.count = arguments["averaged"]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups["optimizer"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(arguments["step"])


def _expected(
    module: nn.Module, optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what `_save` would write: parameters without a gradient have no optimizer state."""
    expected = {f"module.{k}": v for k, v in module.state_dict().items()}
    expected |= {f"average.{k}": p for k, p in module.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        if any(name.startswith(f"optimizer.{index}.") for name in found):
            moments = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            expected |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    return expected
