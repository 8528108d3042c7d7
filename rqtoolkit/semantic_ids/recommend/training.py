"""Training of a sequence model: an epoch at a time, resumable, the best averaged weights kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rqtoolkit.errors import ArtifactError
from rqtoolkit.functional.arguments import check_count, check_number, check_rate
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.io.artifact import check_tensors, read_artifact, write_artifact
from rqtoolkit.semantic_ids.recommend.sequence_model import SequenceModel

__all__ = ["Epoch", "Settings", "train"]

_CLASS = "SequenceModelTraining"
_WARM_UP = 50  # steps in which the learning rate rises
_LAST = 0.05  # share of the learning rate that is left at the end
_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        epochs: Passes over the sequences.
        batch_size: Sequences a step.
        learning_rate: Of AdamW at its highest; it falls along a cosine.
        weight_decay: Of matrices; not of embeddings, memories, norms and biases.
        codes_weight: Of the loss of the codes; the item's has 1.
        averaging: Decay of the moving average of the weights, which is what is kept.
        patience: Epochs without a better validation after which training stops.
        autocast: Compute matrix products in bfloat16.
        seed: Of order and dropout.

    Raises:
        ConfigError: If one is out of its range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    codes_weight: float
    averaging: float
    patience: int
    autocast: bool
    seed: int

    def __post_init__(self) -> None:
        where = "GenerativeRecommender.fit"
        for name in ("epochs", "batch_size", "patience"):
            check_count(where, name, getattr(self, name))
        check_number(where, "learning_rate", self.learning_rate, over=0)
        for name in ("weight_decay", "codes_weight"):
            check_number(where, name, getattr(self, name), least=0)
        check_rate(where, "averaging", self.averaging)


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        number: From 1.
        codes_loss: Mean cross-entropy of an item's codes in nats, with dropout.
        item_loss: Mean cross-entropy of items in nats, with dropout.
        validation: What `validate` gave of the averaged weights; NaN without.
        cpu_seconds: Spent on this epoch and all before it, interruptions aside.
    """

    number: int
    codes_loss: float
    item_loss: float
    validation: float
    cpu_seconds: float = field(compare=False)


def train(
    model: SequenceModel,
    histories: NDArray[np.int64],
    settings: Settings,
    *,
    validate: Callable[[], float] | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train a model in place; it ends with the averaged weights that validated best, in eval mode.

    A checkpoint is written after every epoch, and read at the start if it is there: an
    interrupted training goes on to the result it would have had.

    Args:
        model: Model, on its device.
        histories: Rows of its known_codes, shape (users, T), oldest first, -1 in padding.
        settings: How to train.
        validate: Called with the averaged weights in the model, in eval mode; higher is better.
            None keeps the last weights.
        checkpoint: File to write and to resume from.
        progress: Called with the number of batches done.

    Raises:
        ArtifactError: If the checkpoint is unreadable or of another training.
    """
    state = _Training(model, settings)
    if checkpoint is not None and Path(checkpoint).exists():
        state.read(checkpoint)
    batches = math.ceil(len(histories) / settings.batch_size)
    device = model.memories.device
    while len(state.epochs) < settings.epochs and not state.stalled:
        number, start = len(state.epochs) + 1, process_time()
        # Each epoch draws from seeds of its own, so that none has to be stored.
        order = np.random.default_rng((settings.seed, number))
        sums = np.zeros(2)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(settings.seed * 1_000_003 + number)
            model.train()
            for step, rows in enumerate(_batches(histories, settings.batch_size, order)):
                done = (number - 1) * batches + step
                rate = _learning_rate(settings.learning_rate, done, settings.epochs * batches)
                sums += state.step(torch.from_numpy(rows).to(device), rate, done)
                report(progress, f"epoch {number}", step + 1, batches)
        codes_loss, item_loss = sums / batches
        with state.averaged():
            score = math.nan if validate is None else validate()
        before = state.epochs[-1].cpu_seconds if state.epochs else 0.0
        seconds = before + process_time() - start
        state.note(Epoch(number, float(codes_loss), float(item_loss), score, seconds))
        if checkpoint is not None:
            state.write(checkpoint)
    model.load_state_dict(state.best)
    model.eval()
    return state.epochs


class _Training:
    """Model, optimiser, averages and the best weights so far: what a checkpoint holds."""

    def __init__(self, model: SequenceModel, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.optimizer = torch.optim.AdamW(
            _groups(model, settings.weight_decay), lr=settings.learning_rate, betas=_BETAS
        )
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        self.best = {name: value.clone() for name, value in model.state_dict().items()}
        self.epochs: list[Epoch] = []

    @property
    def stalled(self) -> bool:
        """Whether the last `patience` epochs were no better than one before them."""
        scores = [epoch.validation for epoch in self.epochs]
        if not scores or math.isnan(scores[-1]):
            return False
        return len(scores) - 1 - int(np.argmax(scores)) >= self.settings.patience

    def step(self, histories: Tensor, rate: float, done: int) -> tuple[float, float]:
        """Take one step and return both losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        kind = histories.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.settings.autocast):
            losses = self.model.losses(histories)
        self.optimizer.zero_grad(set_to_none=True)
        (losses.item + self.settings.codes_weight * losses.codes).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        # Early averages reach back no further than a tenth of what has been done.
        decay = min(self.settings.averaging, (done + 1) / (done + 11))
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                self.average[name].lerp_(value, 1 - decay)
        return float(losses.codes.detach()), float(losses.item.detach())

    def averaged(self) -> _Averaged:
        """Put the averaged weights into the model for a block."""
        return _Averaged(self.model, self.average)

    def note(self, epoch: Epoch) -> None:
        """Record an epoch, and its weights if none was better."""
        earlier = [past.validation for past in self.epochs]
        self.epochs.append(epoch)
        if math.isnan(epoch.validation) or epoch.validation > max(earlier, default=-math.inf):
            self.best = {name: value.clone() for name, value in self.average.items()}

    def write(self, path: str | Path) -> None:
        """Write everything that the next epoch needs."""
        write_artifact(
            path,
            class_name=_CLASS,
            arguments={
                "settings": asdict(self.settings),
                # JSON knows no NaN.
                "epochs": [
                    asdict(epoch) | {"validation": _number(epoch.validation)}
                    for epoch in self.epochs
                ],
            },
            tensors=self._tensors(),
        )

    def read(self, path: str | Path) -> None:
        """Go on from what `write` stored."""
        arguments, tensors = read_artifact(
            path, class_name=_CLASS, device=self.model.memories.device
        )
        if arguments.get("settings") != asdict(self.settings):
            raise ArtifactError(
                f"GenerativeRecommender.fit: checkpoint={path} is of a training with other "
                f"settings; got {arguments.get('settings')}. Name another file, or remove it."
            )
        check_tensors(path, self._tensors(), tensors)
        if not torch.equal(tensors["model.known_codes"], self.model.known_codes):
            raise ArtifactError(
                f"GenerativeRecommender.fit: checkpoint={path} is of a training on other semantic "
                "IDs; got other codes of the items. Name another file, or remove it."
            )
        self._adopt(tensors)
        self.epochs = [
            Epoch(**epoch | {"validation": math.nan if epoch["validation"] is None
                             else epoch["validation"]})
            for epoch in arguments["epochs"]
        ]  # fmt: skip

    def _tensors(self) -> dict[str, Tensor]:
        parts: dict[str, dict[str, Tensor]] = {
            "model": self.model.state_dict(),
            "average": self.average,
            "best": self.best,
        }
        for key in ("exp_avg", "exp_avg_sq"):
            parts[key] = {
                name: self.optimizer.state[value].get(key, torch.zeros_like(value))
                for name, value in self.model.named_parameters()
            }
        return {f"{kind}.{name}": t for kind, part in parts.items() for name, t in part.items()} | {
            "steps": torch.tensor(self._steps())
        }

    def _steps(self) -> int:
        first = next(iter(self.model.parameters()))
        return int(self.optimizer.state[first].get("step", 0))

    def _adopt(self, tensors: dict[str, Tensor]) -> None:
        def part(kind: str) -> dict[str, Tensor]:
            mine = (name for name in tensors if name.startswith(f"{kind}."))
            return {name.removeprefix(f"{kind}."): tensors[name].clone() for name in mine}

        self.model.load_state_dict(part("model"))
        self.average, self.best = part("average"), part("best")
        first, second = part("exp_avg"), part("exp_avg_sq")
        for name, value in self.model.named_parameters():
            self.optimizer.state[value] = {
                "step": tensors["steps"].cpu().float(),
                "exp_avg": first[name],
                "exp_avg_sq": second[name],
            }


class _Averaged:
    """Block in which a model has its averaged weights and is in eval mode."""

    def __init__(self, model: nn.Module, average: dict[str, Tensor]) -> None:
        self.model, self.average = model, average

    def __enter__(self) -> None:
        self.own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()

    def __exit__(self, *_: Any) -> None:
        self.model.load_state_dict(self.own)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices that decay, and everything else."""
    decaying = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    decayed = [value for value in model.parameters() if id(value) in decaying]
    others = [value for value in model.parameters() if id(value) not in decaying]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _learning_rate(highest: float, done: int, total: int) -> float:
    """Rise linearly, then fall along a cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * done / total))
    return highest * min(1.0, (done + 1) / _WARM_UP) * (_LAST + (1 - _LAST) * cosine)


def _batches(
    histories: NDArray[np.int64], size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield batches in random order, each of sequences of about one length, cut to the longest."""
    lengths = (histories >= 0).sum(1)
    order = rng.permutation(len(histories))
    parts = []
    for start in range(0, len(order), 16 * size):  # within 16 batches sequences go by length
        pool = order[start : start + 16 * size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        parts += [pool[i : i + size] for i in range(0, len(pool), size)]
    for index in rng.permutation(len(parts)):
        rows = parts[index]
        yield histories[rows, : max(1, lengths[rows].max())]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
