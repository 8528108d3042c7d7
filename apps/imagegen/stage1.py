"""Stage 1: train the RQ-VAE on images."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from imagegen.autoencoder import RQVAE
from imagegen.bottlenecks import build_bottleneck
from imagegen.convolutions import set_checkpointing
from imagegen.data import Batch, BrokenImages, ImageData, ImageSet, batches, to_float
from imagegen.discriminator import PatchDiscriminator
from imagegen.distributed import average_over_ranks, original, spread
from imagegen.losses import AdaptiveWeight
from imagegen.perceptual import Perceptual, load_perceptual
from imagegen.pictures import save_grid
from imagegen.reconstruct import reconstruct, reconstruction_errors
from imagegen.runs import Run
from imagegen.settings import Config
from imagegen.shifts import draw_shifts, shift_images
from imagegen.stage1_step import Adversary, Stage1Step
from imagegen.training import step_seed, train_loop
from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.io.atomic import atomic_path

__all__ = ["build_autoencoder", "build_discriminator", "check_perceptual", "train_stage1"]


def build_autoencoder(config: Config, *, image_channels: int) -> RQVAE:
    """Build the RQ-VAE a configuration describes, weights drawn from torch's default generator."""
    sizes = dataclasses.asdict(config.autoencoder)
    dim = config.autoencoder.code_dim * config.autoencoder.fold**2
    kind = sizes.pop("bottleneck")
    bottleneck = build_bottleneck(kind, dim, **dataclasses.asdict(config.quantizer))
    return RQVAE(
        bottleneck, resolution=config.data.resolution, image_channels=image_channels, **sizes
    )


def build_discriminator(config: Config, *, image_channels: int) -> PatchDiscriminator | None:
    """Build the discriminator a configuration describes, None where its weight is 0."""
    settings = config.stage1.discriminator
    if not settings.weight:
        return None
    return PatchDiscriminator(
        image_channels=image_channels,
        channels=settings.channels,
        layers=settings.layers,
        resolution=config.data.resolution,
    )


def check_perceptual(config: Config) -> None:
    """Refuse LPIPS without its two files, with wrong ones, or on images too small for it.

    Raises:
        ConfigError: If it is asked for and cannot be had.
        ArtifactError: If a file is unreadable, or not what it should be.
    """
    settings = config.stage1.perceptual
    if not settings.weight:
        return
    for name, path in (("vgg", settings.vgg), ("heads", settings.heads)):
        if path is None or not Path(path).is_file():
            raise ConfigError(
                f"train: stage1.perceptual.{name}={path} must be a file of weights; got none. Name "
                f"torchvision's VGG16 and LPIPS's heads, or set stage1.perceptual.weight to 0."
            )
    if config.data.resolution < 16:
        raise ConfigError(
            f"train: stage1.perceptual.weight={settings.weight} needs images of 16 pixels at "
            f"least; got data.resolution={config.data.resolution}. Set it to 0."
        )
    assert settings.vgg is not None
    assert settings.heads is not None
    load_perceptual(settings.vgg, settings.heads)


def train_stage1(
    run: Run, train: ImageData, held_out: ImageSet, *, progress: Progress | None = None
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
        ArtifactError: If the weights of LPIPS are not what they should be.
    """
    config, seed, device = run.config.stage1, run.config.seed, run.device
    layout = _layout(run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(seed, 1))
        model = build_autoencoder(run.config, image_channels=train.channels)
        discriminator = build_discriminator(run.config, image_channels=train.channels)
    set_checkpointing(model, config.checkpointing)
    plain: dict[str, torch.nn.Module] = {"autoencoder": _arranged(model, layout)}
    if discriminator is not None:
        wanted = torch.channels_last if config.channels_last else torch.contiguous_format
        plain["discriminator"] = _arranged(discriminator, wanted)
    models = {
        name: spread(module, run.ranks, mode="ddp", device=device) for name, module in plain.items()
    }
    optimizers = {
        name: torch.optim.Adam(
            module.parameters(),
            config.learning_rate,
            config.betas,
            weight_decay=config.weight_decay,
        )
        for name, module in models.items()
    }
    work = _build_step(run, models, progress)

    def compute(
        step: int, batch: Batch, *, share: float
    ) -> tuple[Tensor, Callable[[], dict[str, Any]]]:
        shifts = draw_shifts(
            batch.rows, config.shift, unmoved=0.0, seed=step_seed(seed, 1, step, 1)
        )
        images = shift_images(to_float(batch.images).to(device), shifts, config.shift)
        return work(images.contiguous(memory_format=layout), step, share=share)

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
            pin_memory=run.device.type == "cuda",
            broken=BrokenImages(train, run.unreadable_path),
        )

    def observe(step: int) -> dict[str, Any]:
        some = held_out.images[:: max(1, len(held_out) // 1000)]
        levels = reconstruct(model, some)
        shown = np.concatenate([some[None, :10], levels[:, :10]])
        picture = run.samples / f"reconstructions-{step:07d}.png"
        save_grid(picture, shown)
        errors = reconstruction_errors(some, levels)
        return {"held_out_relative_error": errors, "reconstructions": picture}

    train_loop(
        run,
        stage=1,
        config=config,
        models=models,
        optimizers=optimizers,
        compute=compute,
        observe=observe,
        finish=lambda: model.save(run.autoencoder_path),
        batches=read,
        progress=progress,
    )
    return RQVAE.load(run.autoencoder_path, device)


def _dtype(run: Run) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, run.config.stage1.dtype or run.config.dtype)
    return dtype


def _layout(run: Run) -> torch.memory_format:
    """Return how images and the autoencoder's maps lie in memory.

    Channels last suits convolutions everywhere; but on a CPU torch's GroupNorm of bfloat16 maps
    then takes ten times as long in its backward pass, which eats more than is gained.
    """
    slow = run.device.type == "cpu" and _dtype(run) == torch.bfloat16
    wanted = run.config.stage1.channels_last and not slow
    return torch.channels_last if wanted else torch.contiguous_format


def _arranged(module: torch.nn.Module, layout: torch.memory_format) -> torch.nn.Module:
    return module.to(memory_format=layout)  # type: ignore[call-overload]


def _build_step(
    run: Run, models: dict[str, torch.nn.Module], progress: Progress | None
) -> Stage1Step:
    """Put together the networks and weights of the losses that a configuration names."""
    config = run.config.stage1
    dtype = _dtype(run)
    autoencoder = cast(RQVAE, original(models["autoencoder"]))
    adversary = None
    if "discriminator" in models:
        settings = dataclasses.asdict(config.discriminator)
        del settings["channels"], settings["layers"]
        adversary = Adversary(
            models["discriminator"],
            AdaptiveWeight(autoencoder.decoder.conv_out, average=average_over_ranks),
            averages=cast(PatchDiscriminator, original(models["discriminator"])).averages,
            average=average_over_ranks,
            dtype=dtype,
            **settings,
        )
    return Stage1Step(
        models["autoencoder"],
        bottleneck_weights={
            "commitment": config.commitment_weight,
            "codebook": 1.0,  # as in VQ-VAE; 0 anyway where moving averages move the codebooks
            "kl": config.kl_weight,
        },
        perceptual=_load_perceptual(run, dtype, progress) if config.perceptual.weight else None,
        perceptual_weight=config.perceptual.weight,
        adversary=adversary,
        dtype=dtype,
    )


def _load_perceptual(run: Run, dtype: torch.dtype, progress: Progress | None) -> Perceptual:
    """Read LPIPS, show the checksums of its files and keep them in the run."""
    settings = run.config.stage1.perceptual
    assert settings.vgg is not None
    assert settings.heads is not None
    perceptual = load_perceptual(settings.vgg, settings.heads, run.device, dtype=dtype)
    if run.ranks.main:
        for file in perceptual.files:
            report(progress, f"LPIPS: {file}", 1, 1)
        record = [{**dataclasses.asdict(f), "known_as": f.known_as} for f in perceptual.files]
        path = run.path / "perceptual.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else record
        if [file["sha256"] for file in before] != [file["sha256"] for file in record]:
            raise ConfigError(
                f"train: {run.path} was started with other weights of LPIPS; got checksums that "
                f"differ from those in {path}. Name the files it was started with."
            )
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return perceptual
