"""Train an autoencoder whose latents are residual-quantized, epoch by epoch."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqtoolkit.functional.assign import chunk_slices
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.quantizers.network_training import Pace, fast_products, state_of
from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["Parts", "Training", "train_autoencoder"]

_LONGEST_GRADIENT = 1.0
_WEIGHT_DECAY = 0.01
_JUDGED_ROWS = 4096  # at a time


class Parts(NamedTuple):
    """What is trained together, in the units that networks see.

    Attributes:
        encoder: Standardised vectors (N, dim) to latents (N, latent_dim).
        quantizer: Of the latents.
        decoder: Latents to standardised vectors.
    """

    encoder: nn.Sequential
    quantizer: ResidualQuantizer
    decoder: nn.Sequential


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the autoencoder is trained.

    Attributes:
        epochs: Passes over the training vectors, at most.
        batch_size: Vectors a step.
        learning_rate: Of AdamW at its highest; falls to zero as half a cosine.
        patience: Passes without a lower held-out error after which training ends.
        commitment_weight: Weight of the commitment loss beside the squared error.
        deadline: On the clock of `time.monotonic`, or None.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    commitment_weight: float
    deadline: float | None


def train_autoencoder(
    parts: Parts,
    x: Tensor,
    held_out: Tensor,
    training: Training,
    *,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> None:
    """Lower the squared error of decoded vectors by gradient; leave the best state met.

    Networks learn by AdamW, the error's gradient passing straight through the quantizer; codebooks
    start from k-means on the first latents, follow them by moving averages, and put codewords that
    nothing chooses on latents of the batch.

    Args:
        parts: What to train, in place; left in training mode.
        x: Vectors, shape (N, dim), standardised.
        held_out: Vectors, shape (M, dim), standardised, whose error decides which state stays.
        training: How.
        generator: Source of chance, on the CPU.
        progress: Told of each epoch.
    """
    for part in parts:
        part.train()
    optimizer = torch.optim.AdamW(
        [*parts.encoder.parameters(), *parts.decoder.parameters()],
        lr=training.learning_rate,
        weight_decay=_WEIGHT_DECAY,
    )
    steps = training.epochs * math.ceil(len(x) / training.batch_size)
    pace = Pace(steps, training.deadline)
    best, least, waited = [state_of(part) for part in parts], math.inf, 0
    chance = torch.Generator(x.device).manual_seed(_drawn_seed(generator))
    for epoch in range(training.epochs):
        for rows in torch.randperm(len(x), generator=generator).split(training.batch_size):
            optimizer.param_groups[0]["lr"] = training.learning_rate * pace.step()
            _step(parts, optimizer, x[rows.to(x.device)], training.commitment_weight, chance)
            if pace.fraction >= 1:
                break
        error = _mean_error(parts, held_out)
        waited = 0 if error < least else waited + 1
        if error < least:
            best, least = [state_of(part) for part in parts], error
        done = waited >= training.patience or pace.fraction >= 1
        report(progress, "autoencoder", training.epochs if done else epoch + 1, training.epochs)
        if done:
            break
    for module, state in zip(parts, best, strict=True):
        module.load_state_dict(state)


def _step(
    parts: Parts,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    commitment_weight: float,
    generator: torch.Generator,
) -> None:
    """Move everything by what one batch (N, dim) teaches."""
    with fast_products(x.device):
        out = parts.quantizer(parts.encoder(x).float(), generator=generator)
        decoded = parts.decoder(out.quantized).float()
    loss = F.mse_loss(decoded, x) + commitment_weight * out.commitment_loss
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], _LONGEST_GRADIENT)
    optimizer.step()


@torch.no_grad()
def _mean_error(parts: Parts, x: Tensor) -> float:
    """Squared error after encoding, summed over dim and averaged over vectors."""
    total = 0.0
    for rows in chunk_slices(len(x), 1, _JUDGED_ROWS):
        with fast_products(x.device):
            codes = parts.quantizer.encode(parts.encoder(x[rows]).float())
            decoded = parts.decoder(parts.quantizer.decode(codes)).float()
        total += float((decoded - x[rows]).square().sum(dtype=torch.float64))
    return total / len(x)


def _drawn_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator))
