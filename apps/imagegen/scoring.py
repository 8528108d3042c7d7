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

import numpy as np

from imagegen.autoencoder import RQVAE
from imagegen.classifiers import images_to_learn_from, own_classifier
from imagegen.config import load_config, shipped_configs
from imagegen.data import ImageSet
from imagegen.evaluate import (
    NEIGHBOURS,
    Classifier,
    EvaluationResult,
    Inception,
    Protocol,
    Scores,
    evaluate_samples,
    save_reference,
    score_reconstructions,
    score_samples,
)
from imagegen.evaluation_sets import (
    GivenSamples,
    draw_samples,
    forget_parts,
    gather_reference,
    open_reference,
    read_given,
)
from imagegen.jobs import load_models, load_split
from imagegen.reconstruct_jobs import bits_per_image, open_perceptual
from imagegen.report import ReportContent, render_report
from imagegen.runs import Run, deferred_interrupt
from imagegen.sample_files import write_samples
from imagegen.stage_scores import score_codes, score_stage1
from rqtoolkit.errors import ConfigError, DataError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.atomic import check_output

__all__ = ["evaluate_run"]

MOST_PICTURES = 10_000  # written one by one; more go into samples.npz
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
    inception: Path | None = None,
    vgg: Path | None = None,
    lpips: Path | None = None,
    reference: Path | None = None,
    save: Path | None = None,
    number: int | None = None,
    given: Path | None = None,
    progress: Progress | None = None,
    since: float | None = None,
    commands: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score a finished run and write metrics.json, report.html, its pictures and the samples.

    As many samples are drawn as there are held-out images, of the same classes or texts, with the
    run's seed and sampling settings. Everything is computed before the first file is replaced, and
    an earlier evaluation is replaced as a whole. Images without classes leave out what is seen
    through a classifier, and a run whose stage 2 is missing has the figures of stage 1 alone.

    Args:
        run: The run.
        inception: Weights of FID's Inception: adds rFID and gFID.
        vgg: VGG16's weights, for LPIPS.
        lpips: LPIPS's heads.
        reference: What gFID compares with, as for `imagegen.evaluation_sets.open_reference`; None
            takes the training images.
        save: Where to keep the statistics of the reference, a .safetensors.
        number: Samples to draw in place of one for each held-out image, all classes alike.
        given: Samples to score in place of drawn ones: a folder, or an .npz.
        progress: Called as progress(description, done, total).
        since: `perf_counter()` at the start of the job, if `seconds` is to count from there. None
            keeps the `seconds` of an earlier evaluation; without one, they are those of training
            and of this evaluation.
        commands: What the report says to type to get this again; None finds out from the
            configuration.

    Returns:
        What metrics.json holds.

    Raises:
        ArtifactError: If stage 1 is not finished, or a file that is named cannot be read.
        ConfigError: If options do not go together.
        DataError: If too few images are held out, or all of them are equal.
    """
    begun = perf_counter()
    if inception is None and (reference or save):
        raise ConfigError(
            f"evaluate: reference={reference} and save={save} are for Inception's scores; got no "
            f"inception. Give its file, or leave these out."
        )
    if number is not None and given is not None:
        raise ConfigError(
            f"evaluate: num={number} draws samples and samples={given} brings some; got both. Give "
            f"one of them."
        )
    extractor = None if inception is None else Inception.load(inception, run.device)
    perceptual = open_perceptual(vgg, lpips, run)
    if save is not None:
        check_output(save)
    transformer = None
    if run.transformer_path.is_file():
        autoencoder, transformer = load_models(run)
    else:
        autoencoder = RQVAE.load(run.require(run.autoencoder_path, 1), run.device)
    training, held_out = load_split(run, progress)
    _check(run, held_out)
    train = images_to_learn_from(training, progress=progress)

    stage1 = score_stage1(autoencoder, held_out, perceptual, fit=run.config.data.fit)
    metrics, scores = dict(stage1.metrics), [stage1.errors]
    if transformer is not None and stage1.codes is not None:
        metrics |= score_codes(run, transformer, stage1.codes, held_out)
        scores.append(_code_scores(metrics, held_out))
    drawn: GivenSamples | None = None
    if given is not None:
        drawn = read_given(given, held_out)
    elif transformer is not None:
        drawn = draw_samples(run, number, held_out, progress=progress)
    if extractor is not None:
        originals = gather_reference("held-out images", held_out, extractor, progress=progress)
        scores.append(score_reconstructions(extractor, originals, stage1.last, progress=progress))
        if drawn is not None:
            real = open_reference(
                reference, training, extractor, fit=run.config.data.fit, progress=progress
            )
            if save is not None:
                save_reference(save, real, extractor)
            scores.append(
                score_samples(
                    extractor,
                    real,
                    drawn.samples.images,
                    seed=drawn.seed,
                    sampler=drawn.sampler,
                    progress=progress,
                )
            )
    result = None if drawn is None else _compare(run, train, held_out, drawn, stage1.last, progress)
    if result is not None and drawn is not None:
        protocol = _comparison_protocol(result, held_out, drawn).to_json()
        metrics |= {**result.metrics, "evaluation": {**result.to_json(), "protocol": protocol}}
    metrics["scores"] = [score.to_json() for score in scores]

    samples = None
    if drawn is not None:
        labels = drawn.samples.labels
        names = None if labels is None else held_out.class_names
        samples = ImageSet(drawn.samples.images, labels, names)
    digits = run.config.data.source == "digits"
    page, pictures = render_report(
        ReportContent(
            title=TITLES.get(run.config.name, run.config.name),
            train=train,
            held_out=held_out,
            samples=samples,
            originals=held_out.images[:10],
            reconstructions=stage1.first,
            relative_error=metrics["reconstruction_relative_error"],
            bits_per_image=bits_per_image(autoencoder),
            usage_counts=stage1.counts,
            losses=_losses(run),
            evaluation=result,
            bits_per_code=metrics.get("bits_per_code", []),
            unigram_bits_per_code=metrics.get("unigram_bits_per_code", []),
            scores=scores,
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
    forget_parts(run)
    return metrics


def _compare(
    run: Run,
    train: ImageSet,
    held_out: ImageSet,
    drawn: GivenSamples,
    reconstructions: np.ndarray,
    progress: Progress | None,
) -> EvaluationResult | None:
    """Look at everything through the run's own classifier; None where there are no classes."""
    labels = drawn.samples.labels
    if train.labels is None or labels is None or len(set(train.labels.tolist())) < 2:
        return None
    classifier = own_classifier(run, train, progress=progress)
    number = min(len(held_out), len(labels))
    if number <= NEIGHBOURS:
        return None
    kept, rows = (
        np.linspace(0, total - 1, number).round().astype(np.int64)
        for total in (len(held_out), len(labels))
    )
    samples = ImageSet(drawn.samples.images[rows], labels[rows], held_out.class_names)
    return evaluate_samples(
        classifier,
        train,
        held_out.subset(kept),
        samples,
        reconstructions[kept],
        progress=progress,
    )


def _comparison_protocol(
    result: EvaluationResult, held_out: ImageSet, drawn: GivenSamples
) -> Protocol:
    return Protocol(
        compared="samples, and the reference rows beside them",
        images=result.images,
        resolution=result.resolution,
        reference="held-out images",
        reference_fingerprint=held_out.fingerprint(),
        reference_images=result.images,
        extractor={"name": result.extractor, "sha256": result.sha256},
        resize=Classifier.resize,
        seed=drawn.seed,
        sampler=drawn.sampler,
        settings={"neighbours": result.k, "seed of the floor": result.seed},
    )


def _code_scores(metrics: Mapping[str, Any], held_out: ImageSet) -> Scores:
    names = ("bits_per_code", "bits_per_image", "code_usage", "code_perplexity")
    protocol = Protocol(
        compared="codes of held-out images",
        images=len(held_out),
        resolution=held_out.resolution,
        reference="the transformer's probabilities, told what is before each code",
        reference_fingerprint=held_out.fingerprint(),
        reference_images=len(held_out),
    )
    return Scores("codes", {name: metrics[name] for name in names}, protocol)


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


def _replace_evaluation(run: Run, drawn: GivenSamples | None, files: Mapping[str, bytes]) -> None:
    """Put files and samples in place of an earlier evaluation's, all or none of them."""
    evaluated = run.samples / "evaluated"
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".evaluation.") as name:
        staged = Path(name)
        if drawn is not None and drawn.origin == "drawn":
            formats = ["png"] if len(drawn.samples.images) <= MOST_PICTURES else ["npz"]
            write_samples(drawn.samples, staged / "evaluated", formats=formats)
        for file, data in files.items():
            (staged / file).write_bytes(data)
        with deferred_interrupt():  # renames only, so Ctrl-C waits for moments
            if evaluated.exists():
                evaluated.replace(staged / "earlier")
            if (staged / "evaluated").exists():
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
            if "commitment" in record:
                add(record, unit, "commitment, of latents", record["commitment"])
            if "kl" in record:
                add(record, "divergence of latents, nats an image", "training", record["kl"])
            if "perceptual" in record:
                add(record, "LPIPS", "training", record["perceptual"])
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
