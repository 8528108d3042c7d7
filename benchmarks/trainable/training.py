"""A small autoencoder around a quantizer: trained for a while, then measured on held-out data."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quantize.vectors import load_vectors
from benchmarks.trainable.plan import Layer
from rqtoolkit.functional.rate_distortion import relative_error

__all__ = ["SETS", "Autoencoder", "train_and_measure"]

DIM, DEPTH, SIZE = 64, 4, 512
LEARNING_RATE = 1e-3


def convolutional() -> tuple[nn.Module, nn.Module]:
    """Return an encoder of images of 784 pixels to a 7×7 map, shape (B, 49, DIM), and back."""
    encoder = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, DIM, 3, padding=1),
        nn.Flatten(2),
        Transposed(),
    )
    decoder = nn.Sequential(
        Transposed(),
        nn.Unflatten(2, (7, 7)),
        nn.Conv2d(DIM, 64, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
        nn.Flatten(1),
    )
    return encoder, decoder


def dense() -> tuple[nn.Module, nn.Module]:
    """Return an encoder of patches of 192 numbers to one vector, shape (B, DIM), and back."""
    widths = (192, 256, 256, DIM)
    return _layers(widths), _layers(widths[::-1])


class Transposed(nn.Module):
    """Swaps the last two axes."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., n, m) for (..., m, n)."""
        return x.mT


def _layers(widths: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Set:
    """A data set with its network and schedule: title, key of `load_vectors`, batch, steps."""

    title: str
    vectors: str
    networks: Callable[[], tuple[nn.Module, nn.Module]]
    batch: int
    steps: int


SETS = {
    "fashion": Set("Fashion-MNIST, 49 vectors an image", "fashion", convolutional, 32, 600),
    "patches": Set("Photo patches, one vector each", "patches", dense, 1024, 600),
}


class Autoencoder(nn.Module):
    """Encoder, quantizer and decoder."""

    def __init__(self, encoder: nn.Module, layer: Layer, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.layer, self.decoder = encoder, layer, decoder

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction, the codes and the loss of the quantizer."""
        quantized, codes, loss = self.layer(self.encoder(x))
        return self.decoder(quantized), codes, loss


def train_and_measure(
    data: str, layer: Callable[[], Layer], *, seed: int, work: Path, steps: int | None = None
) -> dict[str, Any]:
    """Train by Adam and measure in evaluation mode on data that were not trained on.

    Args:
        data: A key of `SETS`.
        layer: Makes the quantizer, after the networks have theirs of the seed.
        seed: Of weights and batches: the same for every quantizer.
        work: Folder of decoded images.
        steps: In place of those of the set.

    Returns:
        `relative_error` of the held-out reconstructions, the share of codes used there by `level`
        and the processor seconds of training.
    """
    plan = SETS[data]
    vectors = load_vectors(plan.vectors, work)
    train, held_out = torch.from_numpy(vectors.train), torch.from_numpy(vectors.held_out)
    torch.manual_seed(seed)
    encoder, decoder = plan.networks()
    model = Autoencoder(encoder, layer(), decoder)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    order = torch.Generator().manual_seed(seed)
    begun = process_time()
    for _ in range(steps or plan.steps):
        x = train[torch.randint(len(train), (plan.batch,), generator=order)]
        output, _, loss = model(x)
        optimizer.zero_grad()
        (F.mse_loss(output, x) + loss).backward()
        optimizer.step()
    seconds = process_time() - begun
    model.eval()
    with torch.no_grad():
        outputs, codes, _ = zip(*map(model, held_out.split(plan.batch)), strict=True)
    stacks = torch.cat(codes).flatten(0, -2)
    return {
        "relative_error": relative_error(held_out, torch.cat(outputs)),
        "usage": [len(level.unique()) / SIZE for level in stacks.T],
        "training_cpu_seconds": seconds,
    }
