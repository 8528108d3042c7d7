"""The loop both stages share: schedule, guards, averaging, checkpoints, resuming to the bit.

The randomness of a step is a function of (seed, stage, step) alone, and of the process where
several train together: the loop seeds torch's generators before every step, so a resumed run needs
no generator state to draw what an uninterrupted one draws.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from time import perf_counter
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from imagegen.checkpointing import TrainingState, WeightAverage, load_state, save_state, writing
from imagegen.distributed import average_over_ranks, gathered, original, synchronising, trained
from imagegen.guards import DivergenceGuard
from imagegen.initialize import initialize
from imagegen.logs import open_log
from imagegen.runs import Run, deferred_interrupt, interruption
from imagegen.settings import StageConfig
from rqtoolkit.functional.progress import Progress, report

__all__ = ["Compute", "learning_rate", "step_seed", "train_loop"]

Batch = TypeVar("Batch", contravariant=True)
Figures = Callable[[], dict[str, Any]]


class Compute(Protocol[Batch]):
    """Runs forward and backward of one part of a step."""

    def __call__(self, step: int, batch: Batch, *, share: float) -> tuple[Tensor, Figures]:
        """Leave gradients of `share` times the loss in the parameters of all models.

        Args:
            step: Number of the step, from 0.
            batch: This process's images of this part.
            share: What the loss is multiplied by: 1 / accumulate.

        Returns:
            The loss, a detached scalar that `share` has not touched, and what gives the figures to
            log: numbers or lists of them by name; called only where they are logged.
        """


def step_seed(*path: int) -> int:
    """Mix integers into one seed: equal paths give equal seeds, neighbours unrelated ones."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> np.uint64(1))


def learning_rate(config: StageConfig, step: int) -> float:
    """Return the rate of one step: linear warm-up, then constant or cosine down to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def train_loop(
    run: Run,
    *,
    stage: int,
    config: StageConfig,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    compute: Compute[Any],
    observe: Callable[[int], dict[str, Any]],
    finish: Callable[[], None],
    batches: Callable[[int], Iterator[Any]],
    progress: Progress | None,
) -> None:
    """Train to the configured step, from the last checkpoint where there is one.

    Args:
        run: Folder to log and save into.
        stage: 1 or 2.
        config: Length, batch, rates, limits and intervals.
        models: What is trained, by name, as `imagegen.distributed.spread` gave it. The weights of
            the first are averaged; their average is what is observed and finished.
        optimizers: The optimizer of each model, under the same names.
        compute: Runs forward and backward of one part of a step; called in train mode.
        observe: Draws pictures and measures held-out data every `sample_every` steps, given the
            steps done; its figures, and the paths of its pictures, are logged. It finds the
            averaged weights in the module that `spread` was given first, and is called in the
            first process alone.
        finish: Writes the finished model, called likewise.
        batches: Gives an iterator over this process's batches from a step on, `accumulate` a step.
        progress: Called as progress(description, done, total).

    Raises:
        DataError: If the loss or a gradient is no longer finite, or beyond its limit.
        ArtifactError: If the last checkpoint is damaged or of another model, or nothing can be
            written any more.
        KeyboardInterrupt: On Ctrl-C, after the state was saved.
        SystemExit: When terminated, after the state was saved.
    """
    ranks, plain = run.ranks, original(next(iter(models.values())))
    inner = {name: trained(model) for name, model in models.items()}
    average = WeightAverage(next(iter(inner.values())), config.weight_average)
    state = TrainingState(inner, optimizers, average)
    start = load_state(run, stage, state)
    if start == 0:
        initialize(run, stage, average.module)
    guard = DivergenceGuard(run, stage, config)
    description = title = f"Stage {stage} of 2"
    with (
        deferred_interrupt() as interrupted,
        torch.random.fork_rng(devices=_device_numbers(run)),
        open_log(run, stage, start) as log,
        closing(cast(Any, batches(start))) as waiting,
    ):
        entered = perf_counter()
        begun = entered - _seconds_spent(run, stage)
        shown = start, entered  # where the pace that is shown is counted from
        for step in range(start, config.steps):
            torch.manual_seed(_seed(run, stage, step))
            for optimizer in optimizers.values():
                optimizer.zero_grad(set_to_none=True)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step)
            loss, figures = _accumulate(config, models, compute, step, waiting)
            norms = {
                name: _clip_gradients(model, config.clip_norm) for name, model in inner.items()
            }
            for optimizer in optimizers.values():
                optimizer.step()
            average.update()
            done = step + 1
            last = done == config.steps
            guard.watch(done, loss, norms)
            if done % config.log_every == 0 or last:
                guard.judge()
                record = {
                    "loss": loss.item(),
                    **_mean_over_ranks(figures),
                    **{f"{name}_gradient_norm": norm.item() for name, norm in norms.items()},
                    "learning_rate": learning_rate(config, step),
                    "seconds": round(perf_counter() - begun, 3),
                }
                log(done, record)
                now = perf_counter()
                pace = (done - shown[0]) * config.batch_size / (now - shown[1])
                shown = done, now
                description = f"{title}, loss {record['loss']:.4g}, {pace:.0f} images/s"
            if done % config.sample_every == 0 or last:
                guard.judge()
                with state.finished(plain, run), writing(run, stage):
                    if ranks.main:
                        log(done, observe(done))
                ranks.wait()
                shown = done, perf_counter()
            report(progress, description, done, config.steps)
            stop = ranks.largest(interrupted())
            if done % config.checkpoint_every == 0 or last or stop:
                guard.judge()
                save_state(run, stage, done, state, keep=config.keep_checkpoints)
            if stop:
                raise interruption(stop)
    with state.finished(plain, run), writing(run, stage):
        if ranks.main:
            finish()
    ranks.wait()


def _accumulate(
    config: StageConfig,
    models: Mapping[str, nn.Module],
    compute: Compute[Any],
    step: int,
    waiting: Iterator[Any],
) -> tuple[Tensor, list[Figures]]:
    """Gather the gradients of one step; return its mean loss over all processes, and figures."""
    for model in models.values():
        model.train()
    losses, figures = [], []
    for part in range(1, config.accumulate + 1):
        with synchronising(models.values(), part == config.accumulate):
            loss, figure = compute(step, next(waiting), share=1 / config.accumulate)
        losses.append(loss)
        figures.append(figure)
    return average_over_ranks(torch.stack(losses).mean()), figures


def _clip_gradients(module: nn.Module, limit: float | None) -> Tensor:
    """Scale gradients down to a norm of at most `limit`; return the norm they had."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), math.inf if limit is None else limit)
    return gathered(norm)


def _mean_over_ranks(figures: Sequence[Figures]) -> dict[str, Any]:
    """Return the means of figures, numbers or lists of them, over parts and processes."""
    found = [figure() for figure in figures]
    means = {}
    for name, value in found[0].items():
        values = torch.tensor([figure[name] for figure in found], dtype=torch.float64)
        mean = average_over_ranks(values.mean(0)).tolist()
        means[name] = mean if isinstance(value, list | float) else type(value)(mean)
    return means


def _seed(run: Run, stage: int, step: int) -> int:
    """Return the seed of a step; other processes than the first draw their own dropout."""
    path = (run.config.seed, stage, step)
    return step_seed(*path, run.ranks.rank) if run.ranks.rank else step_seed(*path)


def _device_numbers(run: Run) -> list[int]:
    return [run.ranks.local_rank] if run.device.type == "cuda" else []


def _seconds_spent(run: Run, stage: int) -> float:
    """Return the seconds a stage has taken up to the last line of its log."""
    lines = [m for m in run.metrics() if m["stage"] == stage and "seconds" in m]
    return float(lines[-1]["seconds"]) if lines else 0.0
