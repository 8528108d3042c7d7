"""Stage 2: train the RQ-Transformer on codes of the frozen RQ-VAE."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagegen.autoencoder import RQVAE
from imagegen.data import Batch, ImageData, ImageSet, batches, to_float
from imagegen.distributed import spread
from imagegen.pictures import save_grid
from imagegen.reconstruct import encode_images
from imagegen.runs import Run
from imagegen.sample import balanced_labels, sample_images
from imagegen.settings import Config
from imagegen.shifts import conditions, count_shifts, draw_shifts, shift_images
from imagegen.training import step_seed, train_loop
from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.transformer import RQTransformer

__all__ = ["build_transformer", "held_out_bits", "train_stage2"]


def build_transformer(config: Config, autoencoder: RQVAE, num_classes: int | None) -> RQTransformer:
    """Build the RQ-Transformer a configuration describes for the codes of an RQ-VAE.

    Raises:
        ConfigError: If the autoencoder has no codes.
    """
    if not autoencoder.quantizes:
        raise ConfigError(
            "train: autoencoder.bottleneck=kl has no codes for stage 2 to model; got a request for "
            "it. Train stage 1 alone, or set autoencoder.bottleneck to rq."
        )
    sizes = dataclasses.asdict(config.transformer)
    for name in ("text_length", "rotary", "qk_norm", "adaln", "swiglu"):
        sizes.pop(name)
    kinds = (num_classes or 1) * count_shifts(config.stage2.shift)
    return RQTransformer(
        positions=autoencoder.grid,
        depth=config.quantizer.depth,
        codebook_size=config.quantizer.codebook_size,
        codebooks=autoencoder.quantizer.codebooks,
        num_classes=kinds if num_classes or kinds > 1 else None,
        **sizes,
    )


@torch.no_grad()
def held_out_bits(
    model: RQTransformer, codes: Tensor, cond: Tensor | None, *, batch_size: int = 256
) -> list[float]:
    """Return the mean bits the model spends on a code, per depth.

    Args:
        model: RQ-Transformer in eval mode.
        codes: Codes of held-out images, shape (N, h, w, depth).
        cond: Their conditions, shape (N,), or None.
        batch_size: Images at a time.
    """
    device = next(model.parameters()).device
    total = torch.zeros(codes.shape[-1], dtype=torch.float64)
    for start in range(0, len(codes), batch_size):
        part = codes[start : start + batch_size].to(device)
        told = None if cond is None else cond[start : start + batch_size].to(device)
        total += model.losses(part, cond=told).double().cpu() * len(part)
    return [float(nats) / len(codes) / math.log(2) for nats in total]


def train_stage2(
    run: Run,
    autoencoder: RQVAE,
    train: ImageData,
    held_out: ImageSet,
    *,
    progress: Progress | None = None,
) -> RQTransformer:
    """Train the run's RQ-Transformer to the end, from its last checkpoint where there is one.

    Latents are computed and codes drawn anew at every step: with stochastic codes no two passes
    over the data are the same.

    Args:
        run: Folder and configuration.
        autoencoder: Finished RQ-VAE; stays as it is.
        train: Images to learn from.
        held_out: Images to measure on.
        progress: Called as progress(description, done, total).

    Returns:
        The finished model in eval mode, as saved in `run.transformer_path`.

    Raises:
        DataError: If the loss is no longer finite.
    """
    config, seed, device = run.config.stage2, run.config.seed, run.device
    autoencoder = autoencoder.to(device).eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(seed, 2))
        model = build_transformer(run.config, autoencoder, train.num_classes)
    half = run.config.dtype == "bfloat16"
    trained_loss = spread(
        model,
        run.ranks,
        mode=run.config.parallel,
        device=device,
        method="loss",
        dtype=torch.bfloat16 if half else torch.float32,
    )
    optimizer = torch.optim.AdamW(
        trained_loss.parameters(),
        config.learning_rate,
        config.betas,
        weight_decay=config.weight_decay,
    )

    def compute(
        step: int, batch: Batch, *, share: float
    ) -> tuple[Tensor, Callable[[], dict[str, Any]]]:
        shifts = draw_shifts(
            batch.rows, config.shift, unmoved=config.unshifted, seed=step_seed(seed, 2, step, 1)
        )
        images = shift_images(to_float(batch.images).to(device), shifts, config.shift)
        with torch.no_grad():
            latents = autoencoder.latents(images)
            soft = autoencoder.quantizer.soft_codes(
                latents,
                config.tau,
                relative=config.relative_tau,
                stochastic=config.stochastic_codes,
            )
        told = conditions(batch.labels, shifts, reach=config.shift)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = trained_loss(
                soft.codes,
                cond=None if told is None else told.to(device),
                targets=soft.probabilities if config.soft_targets else None,
            )
        (share * loss).backward()
        return loss.detach(), dict

    def read(start: int) -> Iterator[Batch]:
        return batches(
            train,
            batch_size=config.batch_size,
            steps=config.steps,
            seed=step_seed(seed, 2, 0),
            start_step=start,
            accumulate=config.accumulate,
            rank=run.ranks.rank,
            ranks=run.ranks.size,
            workers=run.config.data.workers,
        )

    some = held_out.subset(slice(None, None, max(1, len(held_out) // 1000)))
    codes = encode_images(autoencoder, some.images)
    unmoved = torch.zeros(len(some), dtype=torch.int64)
    known = None if some.labels is None else torch.from_numpy(some.labels)
    told_held_out = conditions(known, unmoved, reach=config.shift)

    def observe(step: int) -> dict[str, Any]:
        classes = train.num_classes
        sampling = dataclasses.asdict(run.config.sampling)
        sampling.pop("accept")
        drawn = sample_images(
            model,
            autoencoder,
            40,
            labels=balanced_labels(40, range(classes)) if classes else None,
            reach=config.shift,
            seed=step_seed(seed, 2, 1),
            **sampling,
        )
        save_grid(run.samples / f"samples-{step:07d}.png", np.split(drawn.images, 4))
        return {"held_out_bits_per_code": held_out_bits(model, codes, told_held_out)}

    train_loop(
        run,
        stage=2,
        config=config,
        models={"transformer": trained_loss},
        optimizers={"transformer": optimizer},
        compute=compute,
        observe=observe,
        finish=lambda: model.save(run.transformer_path),
        batches=read,
        progress=progress,
    )
    return RQTransformer.load(run.transformer_path, device=device).eval()
