"""What training networks on vectors takes, whatever the network: checks, units, pace, the loop."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.functional.progress import Progress, report

__all__ = [
    "Pace",
    "Schedule",
    "check_training",
    "fast_products",
    "held_out_rows",
    "standard_units",
    "state_of",
    "train",
]

_WARM_UP = 100  # steps over which the learning rate rises
_HELD_OUT_SHARE = 0.05
_MOST_HELD_OUT = 4096


def check_training(
    where: str,
    frozen: bool,
    *,
    counts: Mapping[str, int],
    amounts: Mapping[str, float | None],
) -> None:
    """Refuse a frozen quantizer, and numbers with which no training works.

    Args:
        where: Class and method, for messages.
        frozen: Whether the quantizer is.
        counts: Whole numbers from 1 on, by name.
        amounts: Numbers above 0, or None, by name.

    Raises:
        ConfigError: If there is one.
    """
    if frozen:
        raise ConfigError(f"{where}: the quantizer is frozen. Make a new one.")
    for name, count in counts.items():
        check_count(where, name, count)
    for name, amount in amounts.items():
        if amount is not None and not 0 < amount < math.inf:
            raise ConfigError(f"{where}: {name}={amount} has to be above 0 and finite.")


def standard_units(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (dim,) and overall standard deviation (1 where there is none) of vectors."""
    center = x.mean(dim=0)
    spread = (x - center).square().mean().sqrt()
    return center, torch.where(spread > 0, spread, 1.0)


def held_out_rows(rows: int, needed: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw which rows train and which judge, both sorted; `needed` of them train in any case."""
    count = max(0, min(int(rows * _HELD_OUT_SHARE), _MOST_HELD_OUT, rows - needed))
    order = torch.randperm(rows, generator=generator)
    return order[count:].sort().values, order[:count].sort().values


def fast_products(device: torch.device) -> torch.autocast:
    """Multiply in bfloat16 where the device does that faster than in float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        fast = device.type == "cpu" and supported is not None and supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of what `load_state_dict` takes."""
    return {name: value.clone() for name, value in module.state_dict().items()}


class Pace:
    """The learning rate as a share of the highest: a short rise, then half a cosine to zero.

    With a deadline, the share of the time that is gone counts where it is ahead of the steps.

    Args:
        steps: Steps of the training, at most.
        deadline: On the clock of `time.monotonic`, or None.
    """

    def __init__(self, steps: int, deadline: float | None) -> None:
        self.steps, self.done = steps, 0
        self.start, self.deadline = time.monotonic(), deadline

    @property
    def fraction(self) -> float:
        """How much of the training is over."""
        if self.deadline is None:
            return self.done / self.steps
        spent = (time.monotonic() - self.start) / max(self.deadline - self.start, 1e-9)
        return min(1.0, max(self.done / self.steps, spent))

    def step(self) -> float:
        """Return the share for the next step."""
        share = 0.5 * (1 + math.cos(math.pi * self.fraction))
        self.done += 1
        return share * min(1.0, self.done / _WARM_UP)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast networks learn.

    Attributes:
        epochs: Passes over the training vectors, at most.
        batch_size: Vectors a step.
        learning_rate: The highest; it falls to zero as half a cosine.
        patience: Passes without a lower held-out error after which training ends.
        deadline: On the clock of `time.monotonic`, or None.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    deadline: float | None


def train(
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    rows: int,
    schedule: Schedule,
    *,
    step: Callable[[Tensor], None],
    judge: Callable[[], float],
    least: float = math.inf,
    generator: torch.Generator,
    name: str,
    progress: Progress | None = None,
) -> None:
    """Take steps, epoch by epoch, and leave the best state met.

    Args:
        modules: What learns, in place.
        optimizer: Whose learning rate the schedule sets.
        rows: Training vectors there are.
        schedule: How long and how fast.
        step: Learns from the vectors of these rows, a tensor on the CPU.
        judge: Returns the held-out error.
        least: What that is before the first step; infinite has any state after an epoch be better.
        generator: Source of the order of rows, on the CPU.
        name: Of this work, for progress.
        progress: Told of each epoch.
    """
    pace = Pace(schedule.epochs * math.ceil(rows / schedule.batch_size), schedule.deadline)
    best, waited = [state_of(module) for module in modules], 0
    for epoch in range(schedule.epochs):
        for batch in torch.randperm(rows, generator=generator).split(schedule.batch_size):
            rate = schedule.learning_rate * pace.step()
            for group in optimizer.param_groups:
                group["lr"] = rate
            step(batch)
            if pace.fraction >= 1:
                break
        error = judge()
        waited = 0 if error < least else waited + 1
        if error < least:
            best, least = [state_of(module) for module in modules], error
        done = waited >= schedule.patience or pace.fraction >= 1
        report(progress, name, schedule.epochs if done else epoch + 1, schedule.epochs)
        if done:
            break
    for module, state in zip(modules, best, strict=True):
        module.load_state_dict(state)
