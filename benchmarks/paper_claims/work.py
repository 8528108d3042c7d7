"""One task: train it in a folder of its own, measure it, and say from which commit it came."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from time import process_time
from typing import Any

import torch

from benchmarks.development_data import prepare_images
from benchmarks.paper_claims.measure import (
    load_classifier,
    measure_stage1,
    measure_stage2,
    time_sampling,
)
from benchmarks.paper_claims.plan import TASKS, Task
from benchmarks.records import Record, commit, rounded
from imagegen.config import load_config
from imagegen.jobs import train_run
from imagegen.runs import Run
from imagegen.settings import Config

__all__ = ["configure", "finished", "perform"]

BASE = Path(__file__).with_name("base.yaml")
QUICK = {
    "stage1.steps": 20,
    "stage1.warmup_steps": 0,
    "stage2.steps": 20,
    "stage2.warmup_steps": 0,
    "data.held_out": 100,
}


def configure(task: Task, seed: int, images: Path, *, quick: bool = False) -> Config:
    """Return the whole configuration of a training: base.yaml, its needs' changes, its own."""
    settings: dict[str, Any] = {}
    for need in task.needs:
        settings |= TASKS[need].settings
    settings |= {**task.settings, "seed": seed, "data.path": str(images)}
    settings |= QUICK if quick else {}
    # held-out figures are taken once, at the end
    config = load_config(BASE, overrides=settings)
    every = {f"{s}.{n}": getattr(config, s).steps for s in ("stage1", "stage2") for n in _RARE}
    return load_config(BASE, overrides=settings | every)


_RARE = ("sample_every", "checkpoint_every")


def _folder(work: Path, data: str, seed: int, task: Task) -> Path:
    return work / "runs" / f"{data}-{seed}-{task.name}"


def finished(work: Path, data: str, seed: int, task: Task) -> bool:
    """Return whether the models of a task lie in its folder, for others to start from."""
    if task.kind == "timing":
        return False
    name = {"stage1": "rqvae", "stage2": "rqtransformer"}[task.kind]
    return (_folder(work, data, seed, task) / "checkpoints" / f"{name}.safetensors").exists()


def perform(task: Task, data: str, seed: int, *, work: Path, quick: bool = False) -> Record:
    """Train and measure one task; what an interrupted training left is thrown away.

    Args:
        task: What to do; the models it needs are there.
        data: Name of the data set.
        seed: Seed of the run; the split and the classifier have their own.
        work: Folder of runs, images and classifiers.
        quick: A few steps on a few images, to see that everything works.
    """
    images = prepare_images(data, work / "images", rows=1000 if quick else task.rows)
    if task.kind == "timing":
        runs = {name: Run.open(_folder(work, data, seed, TASKS[name])) for name in task.needs}
        begun = process_time()
        measures = time_sampling(runs, **({"batch_sizes": (2,), "repeats": 1} if quick else {}))
        return _record(task, data, seed, process_time() - begun, measures)
    config = configure(task, seed, images, quick=quick)
    path = _folder(work, data, seed, task)
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = process_time()
    if task.kind == "stage1":
        source = run = train_run(config, path, stages=[1])
    else:
        run = Run.create(path, config)
        (need,) = task.needs
        source = Run.open(_folder(work, data, seed, TASKS[need]))
        shutil.copyfile(source.autoencoder_path, run.autoencoder_path)
        run = train_run(config, path, stages=[2], resume=True)
    seconds = process_time() - begun
    classifier = load_classifier(work / "classifiers" / f"{data}.safetensors", source)
    measure = measure_stage1 if task.kind == "stage1" else measure_stage2
    return _record(task, data, seed, seconds, measure(run, classifier))


def _record(
    task: Task, data: str, seed: int, seconds: float, measures: Mapping[str, Any]
) -> Record:
    return {
        "data": data,
        "seed": seed,
        "task": task.name,
        "commit": commit(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_seconds": round(seconds, 1),
        "measures": rounded(measures),
    }
