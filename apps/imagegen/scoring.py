"""Score a finished run on its held-out images: metrics.json, report.html and the samples."""

import dataclasses
import json
import shutil
from time import perf_counter
from typing import Any

import torch

from imagegen.data import ImageSet
from imagegen.evaluate import evaluate_samples, train_classifier
from imagegen.jobs import draw_from_run, load_models, load_run_images, write_samples
from imagegen.reconstruct import encode_images, reconstruct, reconstruction_errors
from imagegen.report import ReportContent, write_report
from imagegen.runs import Run
from imagegen.shifts import conditions
from imagegen.stage2 import held_out_bits
from rqtoolkit.errors import DataError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.rate_distortion import bits_per_vector, code_counts, entropy_per_depth
from rqtoolkit.io.atomic import atomic_path

__all__ = ["evaluate_run"]


def evaluate_run(
    run: Run, *, progress: Progress | None = None, since: float | None = None
) -> dict[str, Any]:
    """Score a finished run and write metrics.json, report.html, its pictures and the samples.

    As many samples are drawn as there are held-out images, of the same classes, with the run's
    seed and sampling settings.

    Args:
        run: The run.
        progress: Called as progress(description, done, total).
        since: `perf_counter()` at the start of the job, if `seconds` is to count from there.

    Returns:
        What metrics.json holds.

    Raises:
        ArtifactError: If the run is not finished.
        DataError: If its images have no classes.
    """
    begun = perf_counter()
    since = begun if since is None else since
    train, held_out = load_run_images(run.config, progress)
    if held_out.labels is None:
        raise DataError(
            f"evaluate: the images of {run.path} have no classes; got none to train the "
            f"classifier on. Sort them into one folder a class."
        )
    autoencoder, transformer = load_models(run)
    levels = reconstruct(autoencoder, held_out.images)
    codes = encode_images(autoencoder, held_out.images)
    drawn = draw_from_run(run, len(held_out), labels=held_out.labels, progress=progress)
    samples = ImageSet(drawn.images, drawn.labels, held_out.class_names)
    # Not seeded by the run: runs on the same data are seen through the same network, beside the
    # same ceiling and floors.
    classifier = train_classifier(train, name=f"{run.config.name}-cnn-v1", progress=progress)
    result = evaluate_samples(classifier, train, held_out, samples, levels[-1], progress=progress)
    unmoved = torch.zeros(len(held_out), dtype=torch.int64)
    reach = run.config.stage2.shift
    told = conditions(torch.from_numpy(held_out.labels), unmoved, reach=reach)
    sizes = autoencoder.quantizer.codebook_sizes
    metrics: dict[str, Any] = {
        "reconstruction_relative_error": reconstruction_errors(held_out.images, levels),
        **result.metrics,
        "bits_per_code": held_out_bits(transformer, codes, told),
        "unigram_bits_per_code": entropy_per_depth(codes, sizes),
    }
    folder = run.samples / "evaluated"
    shutil.rmtree(folder, ignore_errors=True)
    write_samples(drawn, folder)
    positions = autoencoder.grid[0] * autoencoder.grid[1]
    rates = [positions * bits_per_vector(sizes[:d]) for d in range(1, len(sizes) + 1)]
    content = ReportContent(
        title=run.config.name,
        train=train,
        held_out=held_out,
        samples=samples,
        originals=held_out.images[:10],
        reconstructions=levels[:, :10],
        relative_error=metrics["reconstruction_relative_error"],
        bits_per_image=rates,
        usage_counts=code_counts(codes, sizes),
        losses=_curves(run),
        evaluation=result,
        bits_per_code=metrics["bits_per_code"],
        unigram_bits_per_code=metrics["unigram_bits_per_code"],
        config=dataclasses.asdict(run.config),
        commands=_commands(run),
    )
    write_report(run.path / "report.html", content)
    metrics |= {"evaluation": result.to_json(), "seconds": round(perf_counter() - since, 1)}
    with atomic_path(run.path / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def _commands(run: Run) -> list[str]:
    config, path = run.config, run.config.data.path
    data = "" if path is None else f" --data {path}"
    return [
        f"rqtool imagegen train {config.name} --out RUN --seed {config.seed}{data}",
        "rqtool imagegen evaluate RUN",
    ]


def _curves(run: Run) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Collect what metrics.jsonl says of the losses, by stage."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    names = {1: ("squared_error", "commitment"), 2: ("loss",)}
    for record in run.metrics():
        stage = record["stage"]
        for name in names[stage]:
            if name in record:
                stage_curves = curves.setdefault(f"Stage {stage}", {})
                steps, values = stage_curves.setdefault(name.replace("_", " "), ([], []))
                steps.append(record["step"])
                values.append(record[name])
    return curves
