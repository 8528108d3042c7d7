"""Many samples in a folder: parts that survive a kill, shared by processes, in bounded memory.

The work has two steps, each in parts that are written as they come. First the codes of all
candidates are drawn, and with rejection scored by a classifier. Then those that are kept are
decoded. A part depends on the seed and its number alone: whoever draws it, and however often the
job is killed, the result is the same.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from imagegen.distributed import Ranks
from imagegen.evaluate import Extractor
from imagegen.rejection import acceptance, best_of_each_class, candidate_labels
from imagegen.sample import Sampler, Samples, parts_of, told_of
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.io.atomic import atomic_path, check_output

__all__ = ["Drawing", "draw_in_folder", "draw_in_memory", "working_folder"]


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn.

    Attributes:
        sampler: Models and settings.
        number: Images wanted.
        labels: Class of each, shape (number,), int64; None for models without classes.
        text: Tokens of each image's text, shape (number, n), int64; None without text.
        captions: The texts themselves.
        prefix: First codes of every image, shape (T0, depth), int64; None draws all of them.
        reach: Reach of the shifts the transformer was trained with.
        accept: Share of the candidates kept; 1 draws what is wanted and no more.
        classifier: Scores candidates, where accept is under 1.
        batch_size: Images a part.
        plan: Everything that the result depends on, as plain values: an unfinished job is taken up
            only where it agrees.
    """

    sampler: Sampler
    number: int
    plan: Mapping[str, Any]
    labels: np.ndarray | None = None
    text: np.ndarray | None = None
    captions: tuple[str, ...] | None = None
    prefix: Tensor | None = None
    reach: int = 0
    accept: float = 1.0
    classifier: Extractor | None = None
    batch_size: int = 100

    def __post_init__(self) -> None:
        """Refuse rejection where there is nothing to reject by."""
        if self.accept < 1 and (self.labels is None or self.classifier is None):
            raise ConfigError(
                f"sample: accept={self.accept} needs a model with classes and a classifier; got "
                f"{'no classes' if self.labels is None else 'no classifier'}. Use accept 1."
            )

    @cached_property
    def candidates(self) -> np.ndarray | None:
        """Class of every image drawn, rejected ones included."""
        if self.accept == 1 or self.labels is None:
            return self.labels
        return candidate_labels(self.labels, self.accept)

    @property
    def drawn(self) -> int:
        """How many images are drawn, rejected ones included."""
        return self.number if self.candidates is None else len(self.candidates)

    def draw(self, part: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of one part and their scores, (B,) float64, 0 where nothing scores."""
        number = rows.stop - rows.start
        labels = None if self.candidates is None else self.candidates[rows]
        text = None if self.text is None else self.text[rows]
        told = told_of(number, labels=labels, text=text, reach=self.reach)
        codes = self.sampler.draw(number, part=part, cond=told, prefix=self.prefix)
        if self.accept == 1:
            return codes, np.zeros(number)
        assert self.classifier is not None
        assert labels is not None
        seen = self.classifier.features(self.sampler.decode(codes))
        return codes, self.classifier.probabilities(seen)[np.arange(number), labels]

    def choose(self, scores: np.ndarray) -> np.ndarray:
        """Return which candidates are kept, shape (number,), given all scores."""
        if self.accept == 1:
            return np.arange(self.number)
        assert self.candidates is not None
        assert self.labels is not None
        return best_of_each_class(self.candidates, scores, self.labels)

    def statistics(self, scores: np.ndarray) -> dict[str, Any]:
        """Return what rejection did; nothing where nothing was rejected."""
        if self.accept == 1 or self.candidates is None:
            return {}
        return {"acceptance": acceptance(self.candidates, scores, self.choose(scores))}


def draw_in_memory(drawing: Drawing, *, progress: Progress | None = None) -> Samples:
    """Draw all at once: the same images as `draw_in_folder`, for numbers that fit in memory."""
    codes, scores = [], []
    for part, rows in parts_of(drawing.drawn, drawing.batch_size):
        found = drawing.draw(part, rows)
        codes.append(found[0])
        scores.append(found[1])
        report(progress, "Sampling", rows.stop, drawing.drawn)
    kept = np.concatenate(codes)[drawing.choose(np.concatenate(scores))]
    parts = parts_of(drawing.number, drawing.batch_size)
    images = np.concatenate([drawing.sampler.decode(kept[rows]) for _, rows in parts])
    return Samples(images, kept, drawing.labels, drawing.captions)


def working_folder(out: Path) -> Path:
    """Return where an unfinished job keeps its parts: beside the folder that it will become."""
    return out.with_name(f".{out.name}.unfinished")


def draw_in_folder(
    drawing: Drawing, folder: Path, *, ranks: Ranks | None = None, progress: Progress | None = None
) -> tuple[Samples, dict[str, Any]]:
    """Draw into a folder, going on where an earlier job with the same plan was stopped.

    Args:
        drawing: What to draw.
        folder: Holds the parts; made if it is not there.
        ranks: The processes that share the work, all of which call this; None is one alone.
        progress: Called as progress(description, done, total).

    Returns:
        The samples, their images memory-mapped from the folder, and what rejection did. Only the
        main process may use them.

    Raises:
        ConfigError: If the folder holds a job with another plan.
        ArtifactError: If it cannot be written, or a part in it is damaged.
    """
    ranks = ranks or Ranks()
    _begin(drawing, folder, ranks)
    parts = list(parts_of(drawing.drawn, drawing.batch_size))
    for part, rows in parts[ranks.rank :: ranks.size]:
        path = folder / f"codes-{part:06d}.npz"
        if not path.exists():
            codes, scores = drawing.draw(part, rows)
            with atomic_path(path) as temporary:
                np.savez(temporary, codes=codes, scores=scores)
        report(progress, "Sampling", rows.stop, drawing.drawn)
    ranks.wait()
    scores = np.concatenate([_read(folder, part)["scores"] for part, _ in parts])
    kept = _gather(folder, parts, drawing.choose(scores))
    images = _open_images(drawing, folder, ranks)
    for part, rows in list(parts_of(drawing.number, drawing.batch_size))[ranks.rank :: ranks.size]:
        mark = folder / f"decoded-{part:06d}"
        if not mark.exists():
            images[rows] = drawing.sampler.decode(kept[rows])
            images.flush()
            mark.touch()
        report(progress, "Decoding", rows.stop, drawing.number)
    ranks.wait()
    samples = Samples(images, kept, drawing.labels, drawing.captions)
    return samples, drawing.statistics(scores)


def _begin(drawing: Drawing, folder: Path, ranks: Ranks) -> None:
    """Write down what is drawn, or check that it is what was begun."""
    plan = json.loads(json.dumps(dict(drawing.plan)))
    path = folder / "plan.json"
    if ranks.main and not path.exists():
        check_output(folder.with_name(f"{folder.name}.json"))  # says where no folder can be made
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(plan, indent=2), encoding="utf-8")
    ranks.wait()
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != plan:
        names = sorted(
            name for name in {*found, *plan} if found.get(name, ...) != plan.get(name, ...)
        )
        raise ConfigError(
            f"sample: {folder} holds an unfinished job with other settings; got another "
            f"{', '.join(names)}. Give the same settings to go on with it, or remove the folder."
        )


def _open_images(drawing: Drawing, folder: Path, ranks: Ranks) -> np.memmap:
    """Open the file of all decoded images, which the main process makes if it is not there."""
    path = folder / "images.npy"
    autoencoder = drawing.sampler.autoencoder
    side, channels = autoencoder.resolution, autoencoder.image_channels
    if ranks.main and not path.exists():
        with atomic_path(path) as temporary:
            shape = (drawing.number, side, side, channels)
            np.lib.format.open_memmap(temporary, "w+", np.uint8, shape).flush()
            _take_room(temporary)
    ranks.wait()
    return np.lib.format.open_memmap(path, "r+")


def _take_room(path: Path) -> None:
    """Take the room of a file that is mapped: a full disk would end the process without a word."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _gather(folder: Path, parts: list[tuple[int, slice]], chosen: np.ndarray) -> np.ndarray:
    """Return the codes of the chosen candidates, a part of all candidates in memory at a time."""
    kept: np.ndarray | None = None
    for part, rows in parts:
        wanted = np.flatnonzero((chosen >= rows.start) & (chosen < rows.stop))
        codes = _read(folder, part)["codes"]
        if kept is None:
            kept = np.empty((len(chosen), *codes.shape[1:]), codes.dtype)
        kept[wanted] = codes[chosen[wanted] - rows.start]
    assert kept is not None
    return kept


def _read(folder: Path, part: int) -> dict[str, np.ndarray]:
    path = folder / f"codes-{part:06d}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("codes", "scores")}
    except Exception as error:
        raise ArtifactError(
            f"sample: {path} cannot be read; got {type(error).__name__}. Remove it and run the "
            f"command again."
        ) from None
