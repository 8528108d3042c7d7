"""Images from nothing: codes drawn from the RQ-Transformer, decoded by the RQ-VAE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imagegen.autoencoder import RQVAE
from imagegen.data import to_uint8
from imagegen.shifts import conditions
from imagegen.training import step_seed
from rqtoolkit.functional.codes import smallest_dtype
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.transformer import RQTransformer

__all__ = ["Sampler", "Samples", "balanced_labels", "parts_of", "sample_images", "told_of"]


@dataclass(frozen=True)
class Samples:
    """Generated images with the codes they were decoded from.

    Attributes:
        images: Shape (N, H, W, C), uint8.
        codes: Shape (N, h, w, depth), the smallest unsigned type that holds them.
        labels: The class asked for, shape (N,), int64; None for models without classes.
        captions: The text asked for, one an image; None for models without text.
    """

    images: np.ndarray
    codes: np.ndarray
    labels: np.ndarray | None
    captions: Sequence[str] | None = None


def balanced_labels(number: int, classes: Sequence[int]) -> np.ndarray:
    """Return `number` labels, the given classes in turn: sorted and as even as can be."""
    return np.sort(np.resize(np.asarray(classes, dtype=np.int64), number))


def parts_of(number: int, size: int) -> Iterator[tuple[int, slice]]:
    """Yield (part, rows) of a set divided into parts of at most `size` rows."""
    for part, start in enumerate(range(0, number, size)):
        yield part, slice(start, min(number, start + size))


class Sampler:
    """Draws codes from one model and decodes them with the other, part by part.

    A part is a batch with a seed of its own, so that it comes out the same whichever process draws
    it, and whether or not those before it were drawn.

    Args:
        transformer: Trained RQ-Transformer, in eval mode; in bfloat16 where it shall draw so.
        autoencoder: Its RQ-VAE, in eval mode.
        seed: Fixes the result to the bit, on one kind of device and for one size of parts.
        temperature: Divides the logits; a number, or one per depth, as the filters.
        top_k: Codes kept, 0 for all.
        top_p: Probability mass kept, 1 for all.
        cfg_scale: Strength of guidance, 1 for none.
    """

    def __init__(
        self,
        transformer: RQTransformer,
        autoencoder: RQVAE,
        *,
        seed: int,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        cfg_scale: float = 1.0,
    ) -> None:
        self.transformer, self.autoencoder, self.seed = transformer, autoencoder, seed
        self.temperature, self.top_p, self.cfg_scale = temperature, top_p, cfg_scale
        self.top_k = (top_k or None) if isinstance(top_k, int) else [k or None for k in top_k]
        self.device = next(transformer.parameters()).device
        self.half = next(transformer.parameters()).dtype == torch.bfloat16
        self.dtype = smallest_dtype(transformer.codebook_sizes)

    def draw(
        self, number: int, *, part: int, cond: Tensor | None = None, prefix: Tensor | None = None
    ) -> np.ndarray:
        """Draw the codes of one part.

        Args:
            number: Images in the part.
            part: Its number, which gives it its seed.
            cond: What the transformer is told of each, shape (number,) or (number, n).
            prefix: First codes of all of them, positions in raster order, shape (T0, depth).

        Returns:
            Codes, shape (number, h, w, depth), the smallest unsigned type that holds them.
        """
        codes = self.transformer.generate(
            number,
            cond=None if cond is None else cond.to(self.device),
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            cfg_scale=self.cfg_scale,
            prefix=None if prefix is None else prefix.expand(number, -1, -1),
            generator=torch.Generator(self.device).manual_seed(step_seed(self.seed, part)),
        )
        return codes.cpu().numpy().astype(self.dtype)

    @torch.no_grad()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes (B, h, w, depth) to uint8 images (B, H, W, C)."""
        drawn = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return to_uint8(self.autoencoder.decode(drawn))


def sample_images(
    transformer: RQTransformer,
    autoencoder: RQVAE,
    number: int,
    *,
    labels: np.ndarray | None = None,
    text: np.ndarray | None = None,
    reach: int = 0,
    seed: int,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    cfg_scale: float = 1.0,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Samples:
    """Draw images, all of them in memory.

    Args:
        transformer: As for `Sampler`, with the settings that follow.
        autoencoder: As for `Sampler`.
        number: Images to draw.
        labels: Class of each, shape (number,), int64; None for models without classes.
        text: Tokens of each image's text, shape (number, n), int64; None for models without text.
        reach: Reach of the shifts the transformer was trained with; samples are unmoved ones.
        seed: As for `Sampler`.
        temperature: As for `Sampler`.
        top_k: As for `Sampler`.
        top_p: As for `Sampler`.
        cfg_scale: As for `Sampler`.
        batch_size: Images at a time.
        progress: Called as progress(description, done, total).

    Returns:
        Images, codes and labels.
    """
    sampler = Sampler(
        transformer,
        autoencoder,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        cfg_scale=cfg_scale,
    )
    told = told_of(number, labels=labels, text=text, reach=reach)
    images, codes = [], []
    for part, rows in parts_of(number, batch_size):
        cond = None if told is None else told[rows]
        codes.append(sampler.draw(rows.stop - rows.start, part=part, cond=cond))
        images.append(sampler.decode(codes[-1]))
        report(progress, "Sampling", rows.stop, number)
    return Samples(np.concatenate(images), np.concatenate(codes), labels)


def told_of(
    number: int, *, labels: np.ndarray | None, text: np.ndarray | None, reach: int
) -> Tensor | None:
    """Return what the transformer is told of images that are not moved: text, or classes.

    Args:
        number: Images.
        labels: Shape (number,), int64, or None.
        text: Tokens, shape (number, n), int64, or None.
        reach: Reach of the shifts the transformer was trained with.

    Returns:
        Conditions, shape (number,) or (number, n), int64; None for an unconditional model.
    """
    if text is not None:
        return torch.from_numpy(text)
    classes = None if labels is None else torch.from_numpy(labels)
    return conditions(classes, torch.zeros(number, dtype=torch.int64), reach=reach)
