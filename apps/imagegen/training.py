"""The loop both stages share: schedule, guards, averaging, checkpoints, resuming to the bit.

The randomness of a step is a function of (seed, stage, step) alone, and of the process where
several train together: the loop seeds torch's generators before every step, so a resumed run needs
no generator state to draw what an uninterrupted one draws.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from time import perf_counter
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from imagegen.checkpointing import TrainingState, WeightAverage, load_state, save_state, writing
from imagegen.distributed import (
    average_over_ranks,
    copy_into,
    gathered,
    original,
    synchronising,
    trained,
)
from imagegen.guards import DivergenceGuard
from imagegen.runs import Run, deferred_interrupt
from imagegen.settings import StageConfig
from rqtoolkit.functional.progress import Progress, report

__all__ = ["Compute", "WeightAverage", "learning_rate", "step_seed", "train_loop"]

Batch = TypeVar("Batch", contravariant=True)
Figures = Callable[[], dict[str, Any]]


class Compute(Protocol[Batch]):
    """Runs forward and backward of one part of a step."""

    def __call__(
        self, step: int, batch: Batch, *, share: float, part: slice
    ) -> tuple[Tensor, Figures]:
        """Leave gradients of `share` times the loss in the parameters of all models.

        Args:
            step: Number of the step, from 0.
            batch: This process's images of this part.
            share: What the loss is multiplied by: 1 / accumulate.
            part: Which images of the step's whole batch these are: what is drawn for all of them,
                from a generator seeded by the step, and cut to `part` depends on neither the
                number of processes nor that of parts.

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
            steps done; its figures are logged. It finds the averaged weights in the module that
            `spread` was given first, and is called in the first process alone.
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
    device, ranks = run.device, run.ranks
    inner = {name: trained(model) for name, model in models.items()}
    first = next(iter(inner.values()))
    state = TrainingState(inner, optimizers, WeightAverage(first, config.weight_average))
    start = load_state(run, stage, state)
    guard = DivergenceGuard(run, stage, config)
    plain = original(next(iter(models.values())))
    if ranks.main:
        run.forget_after(stage, start)
    description = name = f"Stage {stage} of 2"
    forked = [torch.cuda.current_device()] if device.type == "cuda" else []
    begun = perf_counter() - _seconds_spent(run, stage)
    with (
        deferred_interrupt() as interrupted,
        torch.random.fork_rng(devices=forked),
        closing(cast(Any, batches(start))) as waiting,
    ):
        for step in range(start, config.steps):
            torch.manual_seed(step_seed(run.config.seed, stage, step, *[ranks.rank][: ranks.rank]))
            for optimizer in optimizers.values():
                optimizer.zero_grad(set_to_none=True)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step)
            for model in models.values():
                model.train()
            losses, figures = [], []
            for part in range(config.accumulate):
                with synchronising(models.values(), part == config.accumulate - 1):
                    loss, figure = compute(
                        step,
                        next(waiting),
                        share=1 / config.accumulate,
                        part=_own_part(run, config, part),
                    )
                losses.append(loss)
                figures.append(figure)
            norms = {name: clip_gradients(model, config.clip_norm) for name, model in inner.items()}
            for optimizer in optimizers.values():
                optimizer.step()
            state.average.update()
            done = step + 1
            last = done == config.steps
            loss = average_over_ranks(torch.stack(losses).mean())
            guard.watch(done, loss, norms)
            if device.type == "cpu":
                guard.judge()
            if done % config.log_every == 0 or last:
                guard.judge()
                measured = _mean([_mean([figure() for figure in figures])])
                seconds = round(perf_counter() - begun, 3)
                record = {"loss": loss.item(), **measured}
                record |= {f"gradient_norm_{k}": v.item() for k, v in norms.items()}
                record |= {"learning_rate": learning_rate(config, step), "seconds": seconds}
                if ranks.main:
                    with writing(run, stage):
                        run.log({"stage": stage, "step": done, **record})
                description = f"{name}: loss {record['loss']:.4g}"
            if done % config.sample_every == 0 or last:
                guard.judge()
                with averaged_weights(state, plain, run):
                    if ranks.main:
                        with writing(run, stage):
                            run.log({"stage": stage, "step": done, **observe(done)})
                ranks.wait()
            report(progress if ranks.main else None, description, done, config.steps)
            stop = ranks.largest(interrupted())
            if done % config.checkpoint_every == 0 or last or stop:
                guard.judge()
                save_state(run, stage, done, state, keep=config.keep_checkpoints)
            if stop:
                raise stopping(stop)
    with averaged_weights(state, plain, run), writing(run, stage):
        if ranks.main:
            finish()
    ranks.wait()
