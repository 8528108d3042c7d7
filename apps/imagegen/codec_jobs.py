"""Compression as whole jobs: my images to one small file, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagegen.codec import cheapest_conditions, compress_codes, decompress_codes
from imagegen.evaluate.pixels import psnr
from imagegen.guards import enough_room
from imagegen.jobs import load_models
from imagegen.pictures import save_grid
from imagegen.reconstruct import decode_codes, encode_images
from imagegen.runs import Run
from imagegen.sample_jobs import count_classes
from imagegen.shifts import conditions
from imagegen.text import load_run_tokenizer
from imagegen.user_images import read_for_run
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.functional.codes import smallest_dtype
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.atomic import atomic_folder, atomic_path
from rqtoolkit.transformer import RQTransformer

__all__ = ["compress_images", "decompress_images"]


def compress_images(
    run: Run,
    sources: Sequence[Path],
    out: Path,
    *,
    label: int | None = None,
    text: str | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write images as one file of entropy-coded codes.

    Args:
        run: A finished run.
        sources: Image files, folders and .npz archives; their central squares are brought to the
            run's size by its rule `data.fit`.
        out: File to write.
        label: Class of all images; None takes for each the class that makes the file shortest.
        text: What all images show, for models conditioned on texts.
        batch_size: Images that go through the transformer together.
        progress: Called as progress(description, done, total).

    Returns:
        `images`, `bytes`, `model_bits` (what the transformer asked for), `fixed_bits` (codes as
        they are, log2 of the codebook sizes), `pixel_bytes` (uncompressed pixels) and `psnr` of
        the reconstructions, in dB, mean over images.

    Raises:
        ArtifactError: If the run or the images cannot be read.
        ConfigError: If label or text do not go with the model.
    """
    # What cannot be written is refused before the work.
    with enough_room(out), atomic_path(out) as temporary:
        autoencoder, transformer = load_models(run)
        images = read_for_run(run, autoencoder, sources, progress=progress)
        codes = encode_images(autoencoder, images)
        cond = _conditions(run, transformer, codes, label=label, text=text, progress=progress)
        packed = compress_codes(transformer, codes, cond, batch_size=batch_size, progress=progress)
        temporary.write_bytes(packed.data)
    decoded = decode_codes(autoencoder, codes)
    return {
        "images": len(images),
        "bytes": len(packed.data),
        "model_bits": packed.bits,
        "fixed_bits": codes[..., 0].numel() * float(np.log2(transformer.codebook_sizes).sum()),
        "pixel_bytes": images.size,
        "psnr": float(psnr(images, decoded).mean()),
    }


def decompress_images(
    run: Run, source: Path, out: Path, *, progress: Progress | None = None
) -> int:
    """Write the images of a compressed file as a new folder: PNGs, grid.png, codes.npy.

    Args:
        run: The run that compressed them, on the same kind of machine.
        source: What `compress_images` wrote.
        out: New folder.
        progress: Called as progress(description, done, total).

    Returns:
        The number of images.

    Raises:
        ArtifactError: If the file is missing, damaged or of another model, or `out` is there.
    """
    try:
        data = source.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"decompress: {source} cannot be read; got {error.strerror or error}. Check the path."
        ) from None
    with enough_room(out), atomic_folder(out) as folder:
        autoencoder, transformer = load_models(run)
        codes, _ = decompress_codes(transformer, data, progress=progress)
        images = decode_codes(autoencoder, codes)
        for number, image in enumerate(images):
            Image.fromarray(image.squeeze()).save(folder / f"{number:05d}.png")
        save_grid(folder / "grid.png", np.array_split(images[:100], min(10, len(images))))
        dtype = smallest_dtype(transformer.codebook_sizes)
        np.save(folder / "codes.npy", codes.numpy().astype(dtype))
    return len(images)


def _conditions(
    run: Run,
    transformer: RQTransformer,
    codes: torch.Tensor,
    *,
    label: int | None,
    text: str | None,
    progress: Progress | None,
) -> torch.Tensor | None:
    """Return what the transformer is told of each image."""
    if text is not None:
        if transformer.text_length is None:
            raise ConfigError(
                f"compress: text={text!r:.40} was given; got a model without texts. Leave --text "
                f"out."
            )
        return load_run_tokenizer(run).encode([text]).expand(len(codes), -1)
    if label is None:
        return cheapest_conditions(transformer, codes, progress=progress)
    number = count_classes(run, transformer)
    if number is None or not 0 <= label < number:
        known = "none" if number is None else f"0 to {number - 1}"
        raise ConfigError(
            f"compress: label={label} is no class of the model; it has {known}. Choose one of "
            f"those, or leave --label out."
        )
    labels, unmoved = torch.full((len(codes),), label), torch.zeros(len(codes), dtype=torch.int64)
    return conditions(labels, unmoved, reach=run.config.stage2.shift)
