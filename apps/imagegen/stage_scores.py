"""Figures of the two stages that need no samples: errors and usage of codes, and their bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagegen.autoencoder import RQVAE
from imagegen.evaluate.protocol import Scores
from imagegen.evaluate.reconstruction import ReconstructionTally
from imagegen.images import ImageSet
from imagegen.perceptual import Perceptual
from imagegen.reconstruct import encode_images, reconstruct
from imagegen.reconstruct_jobs import perceptual_protocol
from imagegen.runs import Run
from imagegen.sample import told_of
from imagegen.stage2 import held_out_bits
from imagegen.text import load_run_tokenizer
from rqtoolkit.functional.rate_distortion import (
    code_counts,
    entropy_per_depth,
    perplexity,
    usage,
)
from rqtoolkit.transformer import RQTransformer

__all__ = ["Stage1Scores", "score_codes", "score_stage1"]

BATCH = 256
SHOWN = 10


@dataclass(frozen=True)
class Stage1Scores:
    """What an autoencoder makes of held-out images.

    Attributes:
        metrics: `reconstruction_relative_error`, `psnr`, `ssim`, `lpips`, `code_usage` and
            `code_perplexity`, one a depth each, where there are such.
        errors: The errors with their protocol.
        first: Reconstructions of the first ten images at every depth, (depth, n, H, W, C), uint8.
        last: Reconstructions of all images from all codes, shape (N, H, W, C), uint8.
        codes: Shape (N, h, w, depth), int64; None for a model without codes.
        counts: How often each entry was chosen, one array (K,) a depth.
    """

    metrics: dict[str, Any]
    errors: Scores
    first: np.ndarray
    last: np.ndarray
    codes: Tensor | None
    counts: list[np.ndarray]


def score_stage1(
    model: RQVAE, held_out: ImageSet, perceptual: Perceptual | None, *, fit: str
) -> Stage1Scores:
    """Reconstruct held-out images at every depth and measure the errors and the use of codes.

    Args:
        model: The autoencoder, in eval mode.
        held_out: Images it has not seen.
        perceptual: LPIPS, or None to leave it out.
        fit: How images reached the run's size, for the protocol.
    """
    images = held_out.images
    tally = ReconstructionTally(perceptual, device=next(model.parameters()).device)
    last, codes, first = np.empty_like(images), [], np.empty(0)
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        levels = reconstruct(model, part)
        tally.add(part, levels)
        last[start : start + BATCH] = levels[-1]
        if not start:
            first = levels[:, :SHOWN]
        if model.quantizes:
            codes.append(encode_images(model, part))
    figures = tally.figures()
    metrics: dict[str, Any] = {"reconstruction_relative_error": figures["relative_error"]}
    metrics |= {name: values for name, values in figures.items() if name != "relative_error"}
    protocol = perceptual_protocol(perceptual, held_out, reference="held-out images", fit=fit)
    errors = Scores("reconstruction", figures, protocol)
    if not codes:
        return Stage1Scores(metrics, errors, first, last, None, [])
    stack, sizes = torch.cat(codes), model.quantizer.codebook_sizes
    metrics["code_usage"] = usage(stack, sizes)
    metrics["code_perplexity"] = perplexity(stack, sizes)
    metrics["unigram_bits_per_code"] = entropy_per_depth(stack, sizes)
    return Stage1Scores(metrics, errors, first, last, stack, code_counts(stack, sizes))


def score_codes(
    run: Run, model: RQTransformer, codes: Tensor, held_out: ImageSet
) -> dict[str, Any]:
    """Return what the transformer pays for the codes of held-out images.

    Args:
        run: Says how the transformer was told of images.
        model: The transformer, in eval mode.
        codes: Shape (N, h, w, depth), int64.
        held_out: The images, with the classes or texts it was told.

    Returns:
        `bits_per_code`, one a depth, and `bits_per_image`, their sum over positions.
    """
    text = None
    if model.text_length is not None:
        text = load_run_tokenizer(run).encode(list(held_out.texts or ())).numpy()
    told = told_of(len(held_out), labels=held_out.labels, text=text, reach=run.config.stage2.shift)
    bits = held_out_bits(model, codes, told)
    positions = codes.shape[1] * codes.shape[2]
    return {"bits_per_code": bits, "bits_per_image": positions * sum(bits)}
