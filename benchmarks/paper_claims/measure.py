"""What is measured on held-out images once a model is trained."""

import math
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import torch

from imagegen.autoencoder import RQVAE
from imagegen.data import ImageSet
from imagegen.evaluate import Classifier, frechet_distance, neighbour_scores, train_classifier
from imagegen.images import to_float, to_uint8
from imagegen.jobs import load_models, load_split
from imagegen.reconstruct import encode_images, reconstruct, reconstruction_errors
from imagegen.runs import Run
from imagegen.sample_jobs import draw_from_run
from imagegen.stage2 import held_out_bits
from rqtoolkit.functional.rate_distortion import bits_per_vector, entropy_per_depth, usage

__all__ = ["load_classifier", "measure_stage1", "measure_stage2", "time_sampling"]


def load_classifier(path: Path, run: Run) -> Classifier:
    """Return the network all models of a data set are seen through, trained the first time.

    Args:
        path: Its file.
        run: A run with all the training images.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train_classifier(load_split(run)[0].to_memory(), name=f"{path.stem}-cnn").save(path)
    return Classifier.load(path)


def measure_stage1(run: Run, classifier: Classifier) -> dict[str, Any]:
    """Measure reconstructions of held-out images: errors at every depth, rate, distance.

    A Gaussian bottleneck has no codes. Its rate is the divergence, which pays for drawn latents;
    the figures of all else are those of their means, as is usual.
    """
    held_out = load_split(run)[1]
    model = RQVAE.load(run.autoencoder_path, run.device)
    levels = reconstruct(model, held_out.images)
    measures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "relative_error": reconstruction_errors(held_out.images, levels),
        **_seen(classifier, held_out, levels[-1], held_out.labels),
    }
    if not model.quantizes:
        return measures | _measure_gaussian(model, held_out)
    codes = encode_images(model, held_out.images)
    sizes = model.quantizer.codebook_sizes
    return measures | {
        "bits_per_image": model.grid[0] * model.grid[1] * bits_per_vector(sizes),
        "usage": usage(codes, sizes),
        "entropy_bits": entropy_per_depth(codes, sizes),
    }


@torch.no_grad()
def _measure_gaussian(model: RQVAE, held_out: ImageSet) -> dict[str, Any]:
    """Return the rate of a Gaussian bottleneck, and the error of drawn latents, which it buys."""
    model.quantizer.train()  # draws; the rest of the model stays in eval mode
    generator = torch.Generator().manual_seed(0)
    nats, drawn = 0.0, []
    for images in np.array_split(held_out.images, max(1, len(held_out) // 250)):
        output = model(to_float(images), generator=generator)
        nats += float(output.losses["kl"]) * len(images)
        drawn.append(to_uint8(output.reconstruction))
    return {
        "bits_per_image": nats / len(held_out) / math.log(2),
        "relative_error_drawn": reconstruction_errors(held_out.images, np.concatenate(drawn)[None]),
    }


def measure_stage2(run: Run, classifier: Classifier) -> dict[str, Any]:
    """Measure held-out bits per code, of hard codes, and a sample for every held-out image."""
    held_out = load_split(run)[1]
    autoencoder, transformer = load_models(run)
    codes = encode_images(autoencoder, held_out.images)
    drawn = draw_from_run(run, len(held_out), labels=held_out.labels)
    return {
        "parameters": sum(p.numel() for p in transformer.parameters()),
        "bits_per_code": held_out_bits(transformer, codes, torch.from_numpy(held_out.labels)),
        "target_entropy_bits": _target_entropy(run, autoencoder, held_out),
        **_seen(classifier, held_out, drawn.images, drawn.labels),
    }


def time_sampling(
    runs: dict[str, Run], *, batch_sizes: tuple[int, ...] = (1, 16, 100), repeats: int = 5
) -> dict[str, Any]:
    """Time how long each model draws codes, CPU seconds an image, runs in turn, medians."""
    models = {name: load_models(run)[1] for name, run in runs.items()}
    result: dict[str, Any] = {name: {} for name in models}
    for size in batch_sizes:
        cond = torch.zeros(size, dtype=torch.int64)
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(repeats + 1):
            for name, model in models.items():
                begun = process_time()
                model.generate(size, cond=cond)
                times[name].append((process_time() - begun) / size)
        for name, taken in times.items():
            result[name][str(size)] = median(taken[1:])  # the first warms up
    return result


def _seen(
    classifier: Classifier, held_out: ImageSet, images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Compare images with the held-out ones through the classifier's features."""
    real, features = classifier.features(held_out.images), classifier.features(images)
    scores = neighbour_scores(real, features)
    return {
        "frechet_distance": frechet_distance(real, features),
        "class_accuracy": float((classifier.classify(features) == labels).mean()),
        "precision": scores.precision,
        "recall": scores.recall,
        "density": scores.density,
        "coverage": scores.coverage,
        "images": len(held_out),
        "classifier": classifier.sha256[:12],
    }


@torch.no_grad()
def _target_entropy(run: Run, autoencoder: RQVAE, held_out: ImageSet) -> list[float] | None:
    """Return the mean entropy of the soft targets in bits, per depth; None for hard targets."""
    stage2 = run.config.stage2
    if not stage2.soft_targets:
        return None
    latents = autoencoder.latents(to_float(held_out.images[:256]).to(run.device))
    tables = autoencoder.quantizer.codebooks.expand(run.config.quantizer.depth, -1, -1)
    tau = stage2.tau
    residual, entropies = latents.flatten(0, -2), []
    for table in tables:
        scale = table.square().sum(1).mean() if stage2.relative_tau else 1.0
        squared = torch.cdist(residual, table).square()
        soft = (-squared / (tau * scale)).softmax(-1)
        entropies.append(float(-(soft * soft.clamp_min(1e-30).log2()).sum(-1).mean()))
        residual = residual - table[squared.argmin(-1)]
    return entropies
