"""Train an autoencoder whose latents are residual-quantized, epoch by epoch."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqtoolkit.functional.assign import chunk_slices
from rqtoolkit.functional.progress import Progress
from rqtoolkit.quantizers.network_training import Schedule, fast_products, train
from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["Parts", "train_autoencoder"]

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


def train_autoencoder(
    parts: Parts,
    x: Tensor,
    held_out: Tensor,
    schedule: Schedule,
    *,
    commitment_weight: float,
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
        schedule: How long and how fast.
        commitment_weight: Weight of the commitment loss beside the squared error.
        generator: Source of chance, on the CPU.
        progress: Told of each epoch.
    """
    for part in parts:
        part.train()
    optimizer = torch.optim.AdamW(
        [*parts.encoder.parameters(), *parts.decoder.parameters()],
        lr=schedule.learning_rate,
        weight_decay=_WEIGHT_DECAY,
    )
    chance = torch.Generator(x.device).manual_seed(_drawn_seed(generator))
    train(
        parts,
        optimizer,
        len(x),
        schedule,
        step=lambda rows: _step(parts, optimizer, x[rows.to(x.device)], commitment_weight, chance),
        judge=lambda: _mean_error(parts, held_out),
        generator=generator,
        name="autoencoder",
        progress=progress,
    )


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
