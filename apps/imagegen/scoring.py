"""Score a finished run on its held-out images: metrics.json, report.html and the samples."""

import contextlib
import dataclasses
import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from imagegen.classifiers import images_to_learn_from
from imagegen.config import load_config, shipped_configs
from imagegen.data import ImageSet
from imagegen.evaluate import NEIGHBOURS, evaluate_samples, train_classifier
from imagegen.jobs import load_models, load_split
from imagegen.reconstruct import encode_images, reconstruct, reconstruction_errors
from imagegen.report import ReportContent, render_report
from imagegen.runs import Run, deferred_interrupt
from imagegen.sample import Samples
from imagegen.sample_files import write_samples
from imagegen.sample_jobs import draw_from_run
from imagegen.shifts import conditions
from imagegen.stage2 import held_out_bits
from rqtoolkit.errors import DataError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.rate_distortion import bits_per_vector, code_counts, entropy_per_depth

__all__ = ["evaluate_run"]

TITLES = {"digits": "Handwritten digits", "fashion_mnist": "Fashion-MNIST"}
DIGITS_RATE = (
    "For scale: stored exactly, the digits as they come, 8x8 pixels of 17 levels, take at most "
    "262 bits (64 log2 17)."
)
DIGITS_EVALUATION = (
    "With 1,797 digits there is no third split: the shipped settings were chosen while looking at "
    "figures on these held-out images, so the figures here are slightly optimistic."
)


def evaluate_run(
    run: Run,
    *,
    progress: Progress | None = None,
    since: float | None = None,
    commands: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score a finished run and write metrics.json, report.html, its pictures and the samples.

    As many samples are drawn as there are held-out images, of the same classes, with the run's
    seed and sampling settings. Everything is computed before the first file is replaced, and an
    earlier evaluation is replaced as a whole. Images without classes leave out what is seen
    through a classifier.

    Args:
        run: The run.
        progress: Called as progress(description, done, total).
        since: `perf_counter()` at the start of the job, if `seconds` is to count from there. None
            keeps the `seconds` of an earlier evaluation; without one, they are those of training
            and of this evaluation.
        commands: What the report says to type to get this again; None finds out from the
            configuration.

    Returns:
        What metrics.json holds.

    Raises:
        ArtifactError: If the run is not finished.
        DataError: If too few images are held out, or all of them are equal.
    """
    begun = perf_counter()
    autoencoder, transformer = load_models(run)
    all_training, held_out = load_split(run, progress)
    train = images_to_learn_from(all_training, progress=progress)
    _check(run, held_out)
    levels = reconstruct(autoencoder, held_out.images)
    codes = encode_images(autoencoder, held_out.images)
    drawn = draw_from_run(run, len(held_out), labels=held_out.labels, progress=progress)
    samples = ImageSet(drawn.images, drawn.labels, held_out.class_names)
    result = None
    if train.labels is not None and len(set(train.labels.tolist())) > 1:
        # Not seeded by the run: runs on the same data are seen through the same network, beside
        # the same ceiling and floors.
        classifier = train_classifier(train, name=f"{run.config.name}-cnn-v1", progress=progress)
        result = evaluate_samples(
            classifier, train, held_out, samples, levels[-1], progress=progress
        )
    labels = None if held_out.labels is None else torch.from_numpy(held_out.labels)
    unmoved = torch.zeros(len(held_out), dtype=torch.int64)
    told = conditions(labels, unmoved, reach=run.config.stage2.shift)
    sizes = autoencoder.quantizer.codebook_sizes
    metrics: dict[str, Any] = {
        "reconstruction_relative_error": reconstruction_errors(held_out.images, levels),
        **(result.metrics if result else {}),
        "bits_per_code": held_out_bits(transformer, codes, told),
        "unigram_bits_per_code": entropy_per_depth(codes, sizes),
        **({"evaluation": result.to_json()} if result else {}),
    }
    positions = autoencoder.grid[0] * autoencoder.grid[1]
    digits = run.config.data.source == "digits"
    page, pictures = render_report(
        ReportContent(
            title=TITLES.get(run.config.name, run.config.name),
            train=train,
            held_out=held_out,
            samples=samples,
            originals=held_out.images[:10],
            reconstructions=levels[:, :10],
            relative_error=metrics["reconstruction_relative_error"],
            bits_per_image=[
                positions * bits_per_vector(sizes[:depth]) for depth in range(1, len(sizes) + 1)
            ],
            usage_counts=code_counts(codes, sizes),
            losses=_losses(run),
            evaluation=result,
            bits_per_code=metrics["bits_per_code"],
            unigram_bits_per_code=metrics["unigram_bits_per_code"],
            config=dataclasses.asdict(run.config),
            commands=_commands(run) if commands is None else commands,
            sampling=_sampling(run),
            rate_note=DIGITS_RATE if digits else "",
            evaluation_note=DIGITS_EVALUATION if digits else "",
        )
    )
    metrics["seconds"] = _seconds(run, begun, since)
    text = json.dumps(metrics, indent=2) + "\n"
    files = {**pictures, "report.html": page.encode(), "metrics.json": text.encode()}
    _replace_evaluation(run, drawn, files)
    return metrics


def _check(run: Run, held_out: ImageSet) -> None:
    """Refuse in a moment what would fail after minutes."""
    if len(held_out) <= NEIGHBOURS:
        raise DataError(
            f"evaluate: {run.path} must hold out more than k={NEIGHBOURS} images; got "
            f"{len(held_out)}. Train with a larger data.held_out, or with more images."
        )
    if (held_out.images == held_out.images[:1]).all():
        raise DataError(
            f"evaluate: the held-out images of {run.path} must differ; got {len(held_out)} equal "
            f"ones. Check data.path and data.fit."
        )


def _replace_evaluation(run: Run, drawn: Samples, files: Mapping[str, bytes]) -> None:
    """Put files and samples in place of an earlier evaluation's, all or none of them."""
    evaluated = run.samples / "evaluated"
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".evaluation.") as name:
        staged = Path(name)
        write_samples(drawn, staged / "evaluated")
        for file, data in files.items():
            (staged / file).write_bytes(data)
        with deferred_interrupt():  # renames only, so Ctrl-C waits for moments
            if evaluated.exists():
                evaluated.replace(staged / "earlier")
            (staged / "evaluated").replace(evaluated)
            for file in files:
                (staged / file).replace(run.path / file)


def _seconds(run: Run, begun: float, since: float | None) -> float:
    now = perf_counter()
    if since is not None:
        return round(now - since, 1)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))["seconds"])
    trained = {m["stage"]: m["seconds"] for m in run.metrics() if "seconds" in m}
    return round(sum(trained.values()) + now - begun, 1)


def _commands(run: Run) -> list[str]:
    """Return what trains this very configuration again: by name only where nothing differs."""
    config, path = run.config, run.config.data.path
    train = "rqtool imagegen train RUN/config.yaml --out NEW"
    if config.name in shipped_configs():
        overrides = {"seed": config.seed, "data.path": path}
        if load_config(config.name, overrides=overrides) == config:
            data = "" if path is None else f" --data {shlex.quote(path)}"
            train = f"rqtool imagegen train {config.name} --out NEW --seed {config.seed}{data}"
    return [train, "rqtool imagegen evaluate NEW"]


def _sampling(run: Run) -> dict[str, str]:
    sampling = run.config.sampling
    return {
        "temperature": _per_level(sampling.temperature),
        "top-k": _per_level(sampling.top_k, off=0),
        "top-p": _per_level(sampling.top_p, off=1.0),
        "guidance": _per_level(sampling.cfg_scale, off=1.0),
    }


def _per_level(value: float | Sequence[float], *, off: float | None = None) -> str:
    values = list(value) if isinstance(value, Sequence) else [value]
    return "off" if all(v == off for v in values) else ", ".join(f"{v:g}" for v in values)


def _losses(run: Run) -> dict[str, dict[str, dict[str, tuple[list[float], list[float]]]]]:
    """Collect what metrics.jsonl says of training and of held-out images, by stage and unit."""
    soft = run.config.stage2.soft_targets
    stages: dict[str, dict[str, dict[str, tuple[list[float], list[float]]]]] = {}

    def add(record: Mapping[str, Any], unit: str, name: str, value: float) -> None:
        panel = stages.setdefault(f"Stage {record['stage']}", {}).setdefault(unit, {})
        steps, values = panel.setdefault(name, ([], []))
        steps.append(record["step"])
        values.append(value)

    for record in run.metrics():
        if "squared_error" in record:
            unit = "training loss, mean square"
            add(record, unit, "squared error of pixels", record["squared_error"])
            add(record, unit, "commitment, of latents", record["commitment"])
        elif record["stage"] == 2 and "loss" in record:
            kind = "soft" if soft else "hard"
            add(record, "training loss, nats per code", f"{kind} targets", record["loss"])
        if "held_out_relative_error" in record:
            first, *_, last = 2 * record["held_out_relative_error"]
            add(record, "held-out relative error", "first code only", first)
            add(record, "held-out relative error", "all codes", last)
        if "held_out_bits_per_code" in record:
            bits = record["held_out_bits_per_code"]
            unit = "held-out loss, bits per code"
            add(record, unit, "mean over depth", sum(bits) / len(bits))
    return stages
