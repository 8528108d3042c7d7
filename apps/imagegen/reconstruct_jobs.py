"""Reconstruction as a whole job: images through a run's autoencoder, and how far off they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagegen.autoencoder import RQVAE
from imagegen.evaluate.protocol import Protocol
from imagegen.evaluate.reconstruction import ReconstructionTally
from imagegen.guards import enough_room
from imagegen.images import ImageSet
from imagegen.jobs import load_split
from imagegen.perceptual import Perceptual, load_perceptual
from imagegen.pictures import save_grid
from imagegen.reconstruct import encode_images, reconstruct
from imagegen.runs import Run
from imagegen.user_images import read_for_run
from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.codes import smallest_dtype
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.functional.rate_distortion import bits_per_vector
from rqtoolkit.io.atomic import atomic_folder

__all__ = ["bits_per_image", "open_perceptual", "perceptual_protocol", "reconstruct_images"]

BATCH = 256
SHOWN = 10


def reconstruct_images(
    run: Run,
    sources: Sequence[Path],
    out: Path,
    *,
    vgg: Path | None = None,
    lpips: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Send images through the autoencoder of a run and write what comes out as a new folder.

    The folder holds a PNG an image from all its codes, `grid.png` with every depth of the first
    ten, `codes.npy`, and `errors.json`, which is what this returns. A run whose bottleneck is "kl"
    has no codes and no depths: its latents stand at their mean.

    Args:
        run: A run whose stage 1 is finished.
        sources: Image files, folders and .npz archives; their central squares are brought to the
            run's size by its rule `data.fit`. None named takes the held-out images.
        out: New folder.
        vgg: VGG16's weights, for LPIPS.
        lpips: LPIPS's heads.
        progress: Called as progress(description, done, total).

    Returns:
        `levels`, a row a depth with `depth`, `bits_per_image`, `relative_error`, `psnr` and where
        there are such `ssim` and `lpips`; `images`; and the `protocol` of all these.

    Raises:
        ArtifactError: If the run or the images cannot be read, or `out` is there already.
        ConfigError: If one of the two LPIPS files is missing.
    """
    perceptual = open_perceptual(vgg, lpips, run)
    with enough_room(out), atomic_folder(out) as folder:
        model = RQVAE.load(run.require(run.autoencoder_path, 1), run.device)
        if sources:
            originals = ImageSet(read_for_run(run, model, sources, progress=progress))
        else:
            originals = load_split(run, progress)[1]
        images = originals.images
        tally = ReconstructionTally(perceptual, device=run.device)
        codes, shown = [], np.empty(0)
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            levels = reconstruct(model, part)
            tally.add(part, levels)
            if model.quantizes:
                codes.append(encode_images(model, part).numpy())
            if not start:
                shown = np.concatenate([part[None, :SHOWN], levels[:, :SHOWN]])
            for row, image in enumerate(levels[-1], start=start):
                Image.fromarray(image.squeeze()).save(folder / f"{row:05d}.png")
            report(progress, "Reconstructing", start + len(part), len(images))
        titles = ["original", *(f"depth {d}" for d in range(1, len(shown)))]
        save_grid(folder / "grid.png", shown, row_titles=titles if model.quantizes else [])
        if codes:
            dtype = smallest_dtype(model.quantizer.codebook_sizes)
            np.save(folder / "codes.npy", np.concatenate(codes).astype(dtype))
        figures = tally.figures()
        rates = bits_per_image(model)
        rows = [
            {
                **({"depth": depth + 1, "bits_per_image": rates[depth]} if rates else {}),
                **{name: values[depth] for name, values in figures.items()},
            }
            for depth in range(len(figures["relative_error"]))
        ]
        reference = ", ".join(source.name for source in sources) or "held-out images of the run"
        protocol = perceptual_protocol(
            perceptual, originals, reference=reference, fit=run.config.data.fit
        )
        found = {"images": len(images), "levels": rows, "protocol": protocol.to_json()}
        text = json.dumps(found, indent=2) + "\n"
        (folder / "errors.json").write_text(text, encoding="utf-8")
    return found


def bits_per_image(model: RQVAE) -> list[float]:
    """Return the rate of an image's first 1, 2, … levels of codes; [] for a model without codes."""
    if not model.quantizes:
        return []
    sizes = model.quantizer.codebook_sizes
    positions = model.grid[0] * model.grid[1]
    return [positions * bits_per_vector(sizes[:depth]) for depth in range(1, len(sizes) + 1)]


def open_perceptual(vgg: Path | None, heads: Path | None, run: Run) -> Perceptual | None:
    """Read LPIPS where its files are given.

    Raises:
        ConfigError: If one of the two is missing.
        ArtifactError: If a file is not what it should be.
    """
    if vgg is None and heads is None:
        return None
    if vgg is None or heads is None:
        raise ConfigError(
            f"LPIPS: vgg={vgg} and lpips={heads} go together; got one of them. Give both files."
        )
    return load_perceptual(vgg, heads, run.device)


def perceptual_protocol(
    perceptual: Perceptual | None, images: ImageSet, *, reference: str, fit: str
) -> Protocol:
    """Return the protocol of errors of reconstructions."""
    extractor = None
    if perceptual is not None:
        digests = " ".join(file.sha256 for file in perceptual.files)
        extractor = {"name": "LPIPS v0.1, VGG16", "sha256": digests}
    return Protocol(
        compared="reconstructions, each with its image",
        images=len(images),
        resolution=images.resolution,
        reference=reference,
        reference_fingerprint=images.fingerprint(),
        reference_images=len(images),
        extractor=extractor,
        resize=f"images to the run's size before: {fit}",
        settings={"ssim": "Gaussian 11x11, sigma 1.5", "psnr": "mean over images, 100 dB at most"},
    )
