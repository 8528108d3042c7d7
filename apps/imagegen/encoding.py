"""Training images as the transformer reads them: codes or latents, and what it is told."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from imagegen.autoencoder import RQVAE
from imagegen.data import Batch, to_float
from imagegen.shifts import conditions, draw_shifts, shift_images
from imagegen.training import step_seed

__all__ = ["EncodedBatch", "encode_batches", "encode_moved"]

_MOST_PIXELS = 2**22  # encoded at a time: 64 images of 256², 2 GB for an activation of 128 channels


@dataclass(frozen=True)
class EncodedBatch:
    """What stage 2 computes with at once.

    Attributes:
        values: Codes (B, h, w, depth), int64, or latents (B, h, w, dim), float32.
        cond: Classes and shifts (B,), or text tokens (B, n), int64; None where nothing is told.
    """

    values: Tensor
    cond: Tensor | None


@torch.no_grad()
def encode_moved(
    autoencoder: RQVAE, images: Tensor, shifts: Tensor, *, reach: int, kind: str
) -> Tensor:
    """Encode uint8 images, each moved by its shift, a bounded number at a time.

    Always in float32: in half precision some codes would not be those of the same images elsewhere.

    Args:
        autoencoder: Frozen RQ-VAE in eval mode.
        images: Shape (B, H, W, C), uint8.
        shifts: Shift numbers, shape (B,), int64.
        reach: The reach they were drawn for.
        kind: "codes" or "latents".

    Returns:
        Codes (B, h, w, depth), int64, or latents (B, h, w, dim), float32, on the model's device.
    """
    device = next(autoencoder.parameters()).device
    at_once = max(1, _MOST_PIXELS // (images.shape[1] * images.shape[2]))
    encode = autoencoder.encode if kind == "codes" else autoencoder.latents
    parts = [
        encode(shift_images(to_float(part.to(device)), some, reach))
        for part, some in zip(images.split(at_once), shifts.split(at_once), strict=True)
    ]
    return torch.cat(parts)


def encode_batches(
    autoencoder: RQVAE,
    batches: Iterable[Batch],
    *,
    kind: str,
    reach: int,
    unmoved: float,
    seed: int,
    start_step: int,
    accumulate: int,
) -> Iterator[EncodedBatch]:
    """Encode the batches of a training as they come.

    Args:
        autoencoder: Frozen RQ-VAE in eval mode.
        batches: From `imagegen.data.batches`, begun at `start_step`.
        kind: "codes" or "latents".
        reach: Pixels to move images by, at most.
        unmoved: Share of the images that is left in place.
        seed: Fixes the shifts: an image's is a function of it, the step and the row.
        start_step: Step of the first batch.
        accumulate: Batches a step.

    Yields:
        A batch for each that comes.
    """
    for number, batch in enumerate(batches):
        step = start_step + number // accumulate
        shifts = draw_shifts(batch.rows, reach, unmoved=unmoved, seed=step_seed(seed, step))
        values = encode_moved(autoencoder, batch.images, shifts, reach=reach, kind=kind)
        cond = conditions(batch.labels, shifts, reach=reach) if batch.text is None else batch.text
        yield EncodedBatch(values, cond)
