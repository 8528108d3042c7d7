"""Images from nothing: codes drawn from the RQ-Transformer, decoded by the RQ-VAE."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from imagegen.autoencoder import RQVAE
from imagegen.data import to_uint8
from imagegen.shifts import conditions
from rqtoolkit.functional.codes import smallest_dtype
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.transformer import RQTransformer

__all__ = ["Samples", "balanced_labels", "sample_images"]


@dataclass(frozen=True)
class Samples:
    """Generated images with the codes they were decoded from.

    Attributes:
        images: Shape (N, H, W, C), uint8.
        codes: Shape (N, h, w, depth), the smallest unsigned type that holds them.
        labels: The class asked for, shape (N,), int64; None for models without classes.
    """

    images: np.ndarray
    codes: np.ndarray
    labels: np.ndarray | None


def balanced_labels(number: int, classes: Sequence[int]) -> np.ndarray:
    """Return `number` labels, the given classes in turn: sorted and as even as can be."""
    return np.sort(np.resize(np.asarray(classes, dtype=np.int64), number))


@torch.no_grad()
def sample_images(
    transformer: RQTransformer,
    autoencoder: RQVAE,
    number: int,
    *,
    labels: np.ndarray | None,
    reach: int,
    seed: int,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    cfg_scale: float = 1.0,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Samples:
    """Draw images.

    Args:
        transformer: Trained RQ-Transformer, in eval mode.
        autoencoder: Its RQ-VAE, in eval mode.
        number: Images to draw.
        labels: Class of each, shape (number,), int64; None for models without classes.
        reach: Reach of the shifts the transformer was trained with; samples are unmoved ones.
        seed: Fixes the result to the bit, on one kind of device and for one batch size.
        temperature: Divides the logits; a number, or one per depth, as the filters.
        top_k: Codes kept, 0 for all.
        top_p: Probability mass kept, 1 for all.
        cfg_scale: Strength of guidance, 1 for none.
        batch_size: Images at a time.
        progress: Called as progress(description, done, total).

    Returns:
        Images, codes and labels.
    """
    device = next(transformer.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    told = conditions(
        None if labels is None else torch.from_numpy(labels),
        torch.zeros(number, dtype=torch.int64),
        reach=reach,
    )
    images, codes = [], []
    for start in range(0, number, batch_size):
        stop = min(number, start + batch_size)
        drawn = transformer.generate(
            stop - start,
            cond=None if told is None else told[start:stop].to(device),
            temperature=temperature,
            top_k=(top_k or None) if isinstance(top_k, int) else [k or None for k in top_k],
            top_p=top_p,
            cfg_scale=cfg_scale,
            generator=generator,
        )
        images.append(to_uint8(autoencoder.decode(drawn)))
        codes.append(drawn.cpu().numpy())
        report(progress, "Sampling", stop, number)
    dtype = smallest_dtype(transformer.codebook_sizes)
    return Samples(np.concatenate(images), np.concatenate(codes).astype(dtype), labels)
