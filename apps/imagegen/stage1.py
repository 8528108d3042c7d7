"""Stage 1: train the RQ-VAE on images."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagegen.autoencoder import RQVAE
from imagegen.bottlenecks import build_bottleneck
from imagegen.data import Batch, ImageSet, batches, to_float
from imagegen.distributed import spread
from imagegen.losses import generator_loss
from imagegen.pictures import save_grid
from imagegen.reconstruct import reconstruct, reconstruction_errors
from imagegen.runs import Run
from imagegen.settings import Config
from imagegen.shifts import draw_shifts, shift_images
from imagegen.training import step_seed, train_loop
from rqtoolkit.functional.progress import Progress

__all__ = ["build_autoencoder", "train_stage1"]


def build_autoencoder(config: Config, *, image_channels: int) -> RQVAE:
    """Build the RQ-VAE a configuration describes, weights drawn from torch's default generator."""
    sizes = dataclasses.asdict(config.autoencoder)
    dim = config.autoencoder.code_dim * config.autoencoder.fold**2
    kind = sizes.pop("bottleneck")
    bottleneck = build_bottleneck(kind, dim, **dataclasses.asdict(config.quantizer))
    return RQVAE(
        bottleneck, resolution=config.data.resolution, image_channels=image_channels, **sizes
    )


def train_stage1(
    run: Run, train: ImageSet, held_out: ImageSet, *, progress: Progress | None = None
) -> RQVAE:
    """Train the run's RQ-VAE to the end, from its last checkpoint where there is one.

    Args:
        run: Folder and configuration.
        train: Images to learn from.
        held_out: Images to measure on.
        progress: Called as progress(description, done, total).

    Returns:
        The finished model in eval mode, as saved in `run.autoencoder_path`.

    Raises:
        DataError: If the loss is no longer finite.
    """
    config, seed, device = run.config.stage1, run.config.seed, run.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(seed, 1))
        model = build_autoencoder(run.config, image_channels=train.channels)
    trained = spread(model, run.ranks, mode="ddp", device=device)
    optimizer = torch.optim.Adam(
        trained.parameters(), config.learning_rate, config.betas, weight_decay=config.weight_decay
    )
    half = run.config.dtype == "bfloat16"
    weights = {"commitment": config.commitment_weight, "codebook": 1.0, "kl": config.kl_weight}

    def compute(
        step: int, batch: Batch, *, share: float
    ) -> tuple[Tensor, Callable[[], dict[str, Any]]]:
        shifts = draw_shifts(
            batch.rows, config.shift, unmoved=0.0, seed=step_seed(seed, 1, step, 1)
        )
        images = shift_images(to_float(batch.images).to(device), shifts, config.shift)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = trained(images)
        loss, parts = generator_loss(output, images, weights=weights)
        (share * loss).backward()

        def figures() -> dict[str, Any]:
            plain = {name: part.item() for name, part in parts.items()}
            if output.stats is None:
                return plain
            return {**plain, "usage": output.stats.usage, "perplexity": output.stats.perplexity}

        return loss.detach(), figures

    def read(start: int) -> Iterator[Batch]:
        return batches(
            train,
            batch_size=config.batch_size,
            steps=config.steps,
            seed=step_seed(seed, 1, 0),
            start_step=start,
            accumulate=config.accumulate,
            rank=run.ranks.rank,
            ranks=run.ranks.size,
            workers=run.config.data.workers,
        )

    def observe(step: int) -> dict[str, Any]:
        some = held_out.images[:: max(1, len(held_out) // 1000)]
        levels = reconstruct(model, some)
        shown = np.concatenate([some[None, :10], levels[:, :10]])
        save_grid(run.samples / f"reconstructions-{step:07d}.png", shown)
        return {"held_out_relative_error": reconstruction_errors(some, levels)}

    train_loop(
        run,
        stage=1,
        config=config,
        models={"autoencoder": trained},
        optimizers={"autoencoder": optimizer},
        compute=compute,
        observe=observe,
        finish=lambda: model.save(run.autoencoder_path),
        batches=read,
        progress=progress,
    )
    return RQVAE.load(run.autoencoder_path, device)
