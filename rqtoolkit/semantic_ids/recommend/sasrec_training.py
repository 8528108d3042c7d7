"""The training of SASRec: epochs over users of similar length, the best one kept."""

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.errors import ArtifactError, ConfigError, DataError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.io.artifact import check_tensors, read_artifact, write_artifact
from rqtoolkit.semantic_ids.recommend.evaluation import target_ranks
from rqtoolkit.semantic_ids.recommend.sasrec import SASRec
from rqtoolkit.semantic_ids.recommend.sequences import Sequences, Split

__all__ = ["Training", "fit"]

_K = 10  # of the validation
_WARM_UP = 50  # steps in which the learning rate rises
_LAST = 0.05  # share of the learning rate that is left at the end
_SORTED_BATCHES = 16  # sorted by length among each other: a fifth of the padding, still shuffled


def fit(
    train: Sequences,
    validation: Split,
    *,
    arguments: dict[str, Any],
    settings: dict[str, Any],
    checkpoint: str | Path | None,
    threads: int | None,
    progress: Progress | None,
) -> SASRec:
    """Train as `SASRec.fit` describes.

    Args:
        train: Sequences without what is held out.
        validation: Histories and next items.
        arguments: Of the model.
        settings: epochs, patience, batch_size, learning_rate, autocast and seed.
        checkpoint: File to write after every epoch and to go on from; None for none.
        threads: Threads to use.
        progress: Called with the number of epochs done.
    """
    with limited_threads(threads):
        training = Training(train, validation, arguments, settings)
        if checkpoint is not None and Path(checkpoint).exists():
            training.load(checkpoint)
        while not training.done:
            training.run_epoch()
            if checkpoint is not None:
                training.save(checkpoint)
            done = settings["epochs"] if training.done else len(training.history)
            report(progress, "train SASRec", done, settings["epochs"])
        return training.best_model()


class Training:
    """A training that can be stopped after any epoch and goes on from its file.

    An epoch's chance depends on the seed and the epoch's number alone, so that a training that was
    stopped and one that was not end the same.

    Args:
        train: Sequences without what is held out.
        validation: Histories and next items.
        arguments: Of the model.
        settings: epochs, patience, batch_size, learning_rate, autocast and seed.

    Attributes:
        model: As of the last epoch.
        history: An entry per epoch: loss, validation ndcg and recall at 10, cpu_seconds so far.
    """

    def __init__(
        self,
        train: Sequences,
        validation: Split,
        arguments: dict[str, Any],
        settings: dict[str, Any],
    ) -> None:
        for name in ("epochs", "patience", "batch_size"):
            check_count("SASRec.fit", name, settings[name])
        if not 0 < settings["learning_rate"] < math.inf:
            raise ConfigError(
                f"SASRec.fit: learning_rate={settings['learning_rate']!r} must be over 0."
            )
        self.arguments, self.settings = arguments, settings
        self.history: list[dict[str, float]] = []
        self._validation = validation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])
            self.model = SASRec(**arguments)
        self._adam = torch.optim.Adam(
            self.model.parameters(), lr=settings["learning_rate"], betas=(0.9, 0.98)
        )
        self._best = {name: value.clone() for name, value in self.model.state_dict().items()}
        read = train.keep_last(self.model.max_length + 1)
        self._train = read.take(read.lengths >= 2)
        if not len(self._train):
            raise DataError("SASRec.fit: no user has two training interactions. Pass more.")
        if not len(validation.targets):
            raise DataError("SASRec.fit: validation has no user. Pass one at least.")

    @property
    def best_epoch(self) -> int:
        """Number of the best epoch so far, from 0."""
        return int(np.argmax([entry["ndcg"] for entry in self.history]))

    @property
    def done(self) -> bool:
        """Whether all epochs are over, or patience is."""
        epochs = len(self.history)
        if epochs == 0:
            return False
        waited = epochs - 1 - self.best_epoch
        return epochs >= self.settings["epochs"] or waited >= self.settings["patience"]

    def run_epoch(self) -> None:
        """Go over all users once and validate."""
        started, epoch = time.process_time(), len(self.history)
        generator = np.random.default_rng((self.settings["seed"], epoch))
        losses, counts = [], []
        steps = math.ceil(len(self._train) / self.settings["batch_size"])
        mean_count = (len(self._train.items) - len(self._train)) / steps
        self.model.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator.integers(2**62)))
            batches = _batches(self._train.lengths, self.settings["batch_size"], generator)
            for step, users in enumerate(batches, epoch * steps):
                batch = self._train.take(users)
                items = torch.from_numpy(batch.padded(int(batch.lengths.max())))
                counts.append(int(batch.lengths.sum()) - len(batch))
                # A batch of long histories predicts more items than one of short ones: each
                # prediction is to weigh the same.
                rate = self._learning_rate(step / (self.settings["epochs"] * steps), step)
                losses.append(self._step(items, counts[-1] / mean_count, rate))
        self.model.eval()
        ranks = target_ranks(self.model, self._validation, k=_K)
        before = self.history[-1]["cpu_seconds"] if self.history else 0.0
        self.history.append(
            {
                "loss": float(np.average(losses, weights=counts)),
                "ndcg": float(ranks.gains(_K).mean()),
                "recall": float(ranks.hits(_K).mean()),
                "cpu_seconds": before + time.process_time() - started,
            }
        )
        if self.best_epoch == epoch:
            self._best = {name: value.clone() for name, value in self.model.state_dict().items()}

    def best_model(self) -> SASRec:
        """Return the model as of the best epoch, ready to score."""
        model = copy.deepcopy(self.model)  # a new one would draw from the global generator
        model.load_state_dict(self._best)
        model.history = self.history
        return model.eval()

    def save(self, path: str | Path) -> None:
        """Write all that it takes to go on, atomically.

        Args:
            path: File to write; an existing one is replaced.
        """
        write_artifact(
            path,
            class_name="SASRecTraining",
            arguments=self._identity() | {"history": self.history},
            tensors=self._tensors(),
        )

    def load(self, path: str | Path) -> None:
        """Go on from what `save` wrote.

        Args:
            path: File to read.

        Raises:
            ArtifactError: If the file is unreadable or of another model, data or settings.
        """
        found, tensors = read_artifact(path, class_name="SASRecTraining")
        history = found.pop("history", [])
        for name, value in self._identity().items():
            if found.get(name) != value:
                raise ArtifactError(
                    f"SASRec.fit: checkpoint {path} is of another training; got "
                    f"{name}={found.get(name)!r} in place of {value!r}. Name another file."
                )
        self.history = history
        self._adam_start()
        own = self._tensors()
        check_tensors(path, own, tensors)
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])

    def _learning_rate(self, progress: float, step: int) -> float:
        """Rise linearly, then fall along a cosine."""
        falling = _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.settings["learning_rate"] * min(1.0, (step + 1) / _WARM_UP) * falling

    def _step(self, items: Tensor, weight: float, rate: float) -> float:
        """Take one step and return the mean loss of the predictions."""
        for group in self._adam.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings["autocast"]):
            loss = self.model.loss(items)
        self._adam.zero_grad(set_to_none=True)
        (weight * loss).backward()
        self._adam.step()
        return float(loss.detach())

    def _identity(self) -> dict[str, Any]:
        """What has to be the same for a training to go on."""
        kept = {name: value for name, value in self.settings.items() if name != "patience"}
        data = {"users": len(self._train), "interactions": len(self._train.items)}
        return {**self.arguments, **kept, **data}

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name; the tensors themselves and no copies."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self._adam.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        return tensors

    def _adam_start(self) -> None:
        """Have Adam make its state, which only a step does."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self._adam.step()


def _batches(
    lengths: NDArray, batch_size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield all users in batches of similar length, in random order."""
    order = generator.permutation(len(lengths))
    block = batch_size * _SORTED_BATCHES
    sorted_blocks = [
        users[np.argsort(lengths[users], kind="stable")]
        for users in (order[start : start + block] for start in range(0, len(order), block))
    ]
    batches = [
        users[start : start + batch_size]
        for users in sorted_blocks
        for start in range(0, len(users), batch_size)
    ]
    for index in generator.permutation(len(batches)):
        yield batches[index]
