"""Batches whose order a seed fixes, however many processes share them and wherever they start.

The rows of a step are a function of the seed and the step, and how an image is cut out and mirrored
is one of the seed and of its number in the whole training. Neither knows of workers, processes or
resumption, so none of these can change what a model is trained on.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imagegen.data.broken import BrokenImages, check_broken
from imagegen.images import ImageData, ImageSet, UnreadableImageError
from rqtoolkit.errors import ArtifactError, ConfigError, RQToolkitError

__all__ = [
    "Batch",
    "Task",
    "Tasks",
    "TextEncoder",
    "batch_rows",
    "batches",
    "read_tasks",
]


class TextEncoder(Protocol):
    """What turns texts into tokens: `imagegen.text.Tokenizer`."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return tokens, shape (N, length), int64."""


@dataclass(frozen=True)
class Batch:
    """Images that a process computes with at once.

    Attributes:
        images: Shape (B, H, W, C), uint8.
        labels: Classes, shape (B,), int64; None for images without.
        text: Tokens, shape (B, length), int64; None without texts or without a tokenizer.
        rows: Where each image lies in its set, shape (B,), int64.
        broken: Name and reason of every image that could not be read and was passed over, by row.
    """

    images: Tensor
    labels: Tensor | None
    text: Tensor | None
    rows: Tensor
    broken: Mapping[int, str] = field(default_factory=dict)

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, from which a GPU copies without waiting."""
        labels = None if self.labels is None else self.labels.pin_memory()
        text = None if self.text is None else self.text.pin_memory()
        return Batch(self.images.pin_memory(), labels, text, self.rows, self.broken)


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
    parts = []
    for number in range(start // rows, (stop - 1) // rows + 1):
        first = number * rows
        parts.append(_order(rows, seed, number)[max(start - first, 0) : stop - first])
    return torch.from_numpy(np.concatenate(parts))


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, number: int) -> np.ndarray:
    """Return the order of one pass; the next steps ask for the same one."""
    return np.random.default_rng((seed, number)).permutation(rows)


@dataclass(frozen=True)
class Task:
    """Rows to read, and the number of each in the whole training; both (B,), int64."""

    rows: np.ndarray
    numbers: np.ndarray


@dataclass(frozen=True)
class Tasks:
    """The tasks of one process in order; the arguments are those of `batches`.

    Raises:
        ConfigError: If batch_size does not divide by accumulate times ranks.
    """

    length: int
    batch_size: int
    steps: range
    seed: int
    accumulate: int = 1
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be divided evenly."""
        parts = self.accumulate * self.ranks
        if self.batch_size % parts:
            raise ConfigError(
                f"batches: batch_size={self.batch_size} must divide by processes times accumulate; "
                f"got {self.ranks} x {self.accumulate}. Choose a multiple of {parts}."
            )

    def __iter__(self) -> Iterator[Task]:
        for step in self.steps:
            rows = batch_rows(self.length, self.batch_size, step, self.seed).numpy()
            numbers = step * self.batch_size + np.arange(self.batch_size)
            for part in range(self.accumulate):
                mine = part * self.ranks + self.rank
                size = self.batch_size // (self.accumulate * self.ranks)
                cut = slice(mine * size, (mine + 1) * size)
                yield Task(rows[cut], numbers[cut])


def batches(
    data: ImageData,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    accumulate: int = 1,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    tokenizer: TextEncoder | None = None,
    pin_memory: bool = False,
    broken: BrokenImages | None = None,
) -> Iterator[Batch]:
    """Read the batches of a training in order, from any step on.

    A step has the `batch_size` rows of `batch_rows`. They are cut into `accumulate` parts, each of
    which the processes divide among them, in the order of their ranks. Images that cannot be read
    are named in the log and replaced by the next row that can; once there are more of them than
    `data.skippable`, the set is refused.

    Args:
        data: The images.
        batch_size: Images of a step, over all processes.
        steps: Steps of the whole training.
        seed: Fixes the order, and how each image is cut out and mirrored.
        start_step: First step to read.
        accumulate: Parts of a step, each a batch of its own.
        rank: Number of this process.
        ranks: Processes that share the steps.
        workers: Processes that read ahead; images in memory are indexed without.
        tokenizer: Encodes the texts; None leaves them out.
        pin_memory: Whether the batches are on their way to a GPU.
        broken: Counts the images that cannot be read; None counts those of this call.

    Yields:
        This process's part of each part of each step: `accumulate` batches a step, each of
        batch_size / accumulate / ranks images.

    Raises:
        ConfigError: If batch_size cannot be divided so.
        ArtifactError: If too many images cannot be read, or a worker is killed.
    """
    tasks = Tasks(len(data), batch_size, range(start_step, steps), seed, accumulate, rank, ranks)
    yield from read_tasks(
        data,
        tasks,
        seed=seed,
        workers=workers,
        tokenizer=tokenizer,
        pin_memory=pin_memory,
        broken=broken,
    )


def read_tasks(
    data: ImageData,
    tasks: Iterable[Task],
    *,
    seed: int,
    workers: int = 0,
    tokenizer: TextEncoder | None = None,
    pin_memory: bool = False,
    broken: BrokenImages | None = None,
) -> Iterator[Batch]:
    """Read any rows in any order, a batch for each task; the rest is as for `batches`.

    Raises:
        ArtifactError: If too many images cannot be read, or a worker is killed.
    """
    reader = _Reader(data, seed, tokenizer)
    read_ahead = workers > 0 and not isinstance(data, ImageSet)
    results = (
        _read_ahead(reader, tasks, workers, pin_memory) if read_ahead else map(reader.read, tasks)
    )
    broken = broken or BrokenImages(data)
    for batch in results:
        if isinstance(batch, RQToolkitError):
            raise batch
        broken.add(batch.broken)
        yield batch


class _Reader(Dataset):
    """Reads whole batches, so that a worker hands over one array and not one an image."""

    def __init__(self, data: ImageData, seed: int, tokenizer: TextEncoder | None) -> None:
        self.data, self.seed, self.tokenizer = data, seed, tokenizer

    def __getitem__(self, task: Task) -> Batch | RQToolkitError:
        return self.read(task)

    def read(self, task: Task) -> Batch | RQToolkitError:
        """Read one task, or return what stood in the way."""
        try:
            return self._read(task)
        except RQToolkitError as error:  # a worker's exceptions lose their type and gain a page
            return error

    def _read(self, task: Task) -> Batch:
        data, rows = self.data, task.rows
        broken: dict[int, str] = {}
        if isinstance(data, ImageSet) and not data.flip:
            images = data.images[rows]
        else:
            rows = rows.copy()
            images = np.empty((len(rows), *data.resolution, data.channels), np.uint8)
            for place, number in enumerate(task.numbers):
                images[place], rows[place] = self._read_one(rows[place], number, broken)
        labels, texts, text = data.labels, data.texts, None
        if texts is not None and self.tokenizer is not None:
            text = self.tokenizer.encode([texts[row] for row in rows])
        return Batch(
            torch.from_numpy(images),
            None if labels is None else torch.from_numpy(labels[rows]),
            text,
            torch.from_numpy(rows),
            broken,
        )

    def _read_one(self, row: int, number: int, broken: dict[int, str]) -> tuple[np.ndarray, int]:
        """Return an image and its row: the one asked for, or the next that can be read."""
        key = np.array([self.seed, number], np.uint64)
        while True:
            try:
                generator = np.random.Generator(np.random.Philox(key=key))
                return self.data.read(int(row), generator=generator), row
            except UnreadableImageError as error:
                broken[int(row)] = str(error)
                check_broken(list(broken.values()), self.data.skippable, len(self.data))
                row = (row + 1) % len(self.data)


def _read_ahead(
    reader: _Reader, tasks: Iterable[Task], workers: int, pin_memory: bool
) -> Iterator[Batch | RQToolkitError]:
    """Read tasks in worker processes; results come in order.

    Workers start by forkserver: a forked one inherits the locks of threads that it does not have,
    and hangs in faiss or OpenMP once the parent has used them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])  # torch is imported once, not by each
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_follow_parent,
        multiprocessing_context=context,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own: torch's default one belongs to the training
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ArtifactError(
            f"batches: a process that reads images was killed; got {str(error).splitlines()[0]} "
            f"If memory ran out, lower data.workers."
        ) from None


def _as_it_is(batch: Any) -> Any:
    return batch


def _follow_parent(_worker: int) -> None:
    """Leave Ctrl-C to the parent, which ends its step first, and die with it.

    torch's own watch looks at the parent's number, which is here that of the server, and the server
    waits for its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
