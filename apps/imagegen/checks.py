"""What must hold of a configuration, alone and with its images, before a run makes its folder."""

import os
from collections.abc import Collection

import torch
from torch import nn

from imagegen.guards import enough_memory
from imagegen.images import ImageData, ImageSet
from imagegen.initialize import check_initial
from imagegen.logs import check_loggers
from imagegen.runs import resolve_device
from imagegen.settings import Config, DiscriminatorConfig, StageConfig
from imagegen.stage1 import build_autoencoder, build_discriminator, check_perceptual
from imagegen.stage2 import build_transformer
from imagegen.text import Tokenizer
from rqtoolkit.errors import ConfigError, ShapeError

__all__ = ["check_settings", "check_training"]


def check_settings(
    config: Config,
    *,
    tokenizer: Tokenizer | None = None,
    stages: Collection[int] = (1, 2),
    processes: int = 1,
) -> None:
    """Refuse a configuration that can train on no images, before any is read.

    Both models are built on the meta device, which takes neither memory nor random numbers, for
    grey images of one class: others ask for more, as `check_training` then sees.

    Args:
        config: What is to be trained.
        tokenizer: What turns texts into tokens, where `config.data.tokenizer` names one.
        stages: Stages that are going to be trained.
        processes: Processes that share each batch.

    Raises:
        ConfigError: If settings or sizes do not fit each other.
        ArtifactError: If a file of weights is not what it should be.
        MissingDependencyError: If a logger is not installed.
    """
    check_loggers(config)
    for stage in stages:
        name, settings = f"stage{stage}", getattr(config, f"stage{stage}")
        _check_batch(name, settings, processes)
        _check_warmup(name, settings)
    if 1 in stages:
        _check_discriminator(config.stage1.discriminator)
    if 2 in stages:
        _check_cache(config)
    models = _build(config, stages, channels=1, classes=1, tokenizer=tokenizer)
    for stage in stages:
        _check_memory(config, stage, models[stage], processes)
    _check_attention(config)
    if 1 in stages:
        check_perceptual(config)


def check_training(
    config: Config,
    train: ImageData,
    held_out: ImageSet,
    *,
    tokenizer: Tokenizer | None = None,
    stages: Collection[int] = (1, 2),
    starting: Collection[int] | None = None,
    processes: int = 1,
) -> None:
    """Refuse a configuration that cannot train on these images, or from the models it names.

    Args:
        config: What is to be trained; `check_settings` has passed it.
        train: Images to learn from.
        held_out: Images to measure on.
        tokenizer: As for `check_settings`.
        stages: As for `check_settings`.
        starting: Stages whose models come from `config.init_from`; None for those that are trained.
        processes: As for `check_settings`.

    Raises:
        ConfigError: If sizes do not fit the images, or the models to start from.
        ArtifactError: If there are no such models.
        ShapeError: If training and held-out images have different channels.
    """
    if train.channels != held_out.channels:
        raise ShapeError(
            f"train: training and held-out images must have the same channels; got "
            f"{train.channels} and {held_out.channels}. Convert one of the two."
        )
    if tokenizer is not None and (train.texts is None or held_out.texts is None):
        raise ConfigError(
            f"train: data.tokenizer={config.data.tokenizer} needs images with texts; got none. "
            f"Set it to null, or name the texts' column."
        )
    dropout = config.transformer.label_dropout
    if dropout and train.num_classes is None and tokenizer is None:
        raise ConfigError(
            f"train: transformer.label_dropout={dropout} needs images with classes or texts; got "
            f"neither. Set it to 0."
        )
    models = _build(
        config, stages, channels=train.channels, classes=train.num_classes, tokenizer=tokenizer
    )
    for stage in stages:
        _check_memory(config, stage, models[stage], processes)
    if config.init_from is not None:
        for stage in sorted(stages if starting is None else starting):
            check_initial(config.init_from, stage, models[stage])


def _build(
    config: Config,
    stages: Collection[int],
    *,
    channels: int,
    classes: int | None,
    tokenizer: Tokenizer | None,
) -> dict[int, nn.Module]:
    """Return the models of the stages on the meta device, or refuse their sizes."""
    relief = "Lower the sizes of the autoencoder or the transformer."
    with (
        enough_memory("the models", relief),
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
    ):
        autoencoder = build_autoencoder(config, image_channels=channels)
        build_discriminator(config, image_channels=channels)
        models: dict[int, nn.Module] = {1: autoencoder}
        if autoencoder.quantizes or 2 in stages:
            models[2] = build_transformer(config, autoencoder, classes, tokenizer=tokenizer)
    return models


def _check_attention(config: Config) -> None:
    """Refuse attention at resolutions that no level has."""
    sizes = config.autoencoder
    levels = [config.data.resolution // 2**level for level in range(len(sizes.multipliers))]
    absent = [side for side in sizes.attention if side not in levels]
    if absent:
        raise ConfigError(
            f"train: autoencoder.attention={list(sizes.attention)} names resolutions that do not "
            f"occur: {absent}; got levels of {levels}. Choose among those, or set it to []."
        )


def _check_discriminator(config: DiscriminatorConfig) -> None:
    """Refuse what would be left out of the training without a word."""
    name = "stage1.discriminator"
    if config.penalty != "none" and not config.penalty_weight:
        raise ConfigError(
            f"train: {name}.penalty={config.penalty} needs a weight; got {name}.penalty_weight=0. "
            f"Set that above 0, or penalty to none."
        )
    idle = {"penalty": config.penalty != "none", "augment": bool(config.augment)}
    for key, is_set in idle.items():
        if is_set and not config.weight:
            value = getattr(config, key)
            shown = list(value) if isinstance(value, tuple) else value
            raise ConfigError(
                f"train: {name}.{key}={shown} needs a discriminator; got {name}.weight=0. Set that "
                f"above 0, or remove {key}."
            )


def _check_cache(config: Config) -> None:
    """Refuse copies of every image that would all be the same."""
    data, copies = config.data, config.stage2.cache
    if copies > 1 and data.crop == "center" and not data.flip and not config.stage2.shift:
        raise ConfigError(
            f"train: stage2.cache={copies} keeps copies that nothing would tell apart; got "
            f"data.crop=center, data.flip=false and stage2.shift=0. Set it to 1, or change those."
        )


def _check_batch(name: str, config: StageConfig, processes: int) -> None:
    parts = config.accumulate * processes
    if config.batch_size % parts:
        raise ConfigError(
            f"train: {name}.batch_size={config.batch_size} must divide by {name}.accumulate times "
            f"processes; got {config.accumulate} × {processes}. Choose a multiple of {parts}."
        )


def _check_warmup(name: str, config: StageConfig) -> None:
    """Refuse a training that would end before it reaches its learning rate."""
    if config.warmup_steps > config.steps:
        raise ConfigError(
            f"train: {name}.warmup_steps={config.warmup_steps} must be at most {name}.steps; got "
            f"{config.steps}. Lower it, or raise {name}.steps."
        )


def _check_memory(config: Config, stage: int, model: nn.Module, processes: int) -> None:
    """Refuse a model whose weights, gradients and Adam's two averages no device holds whole."""
    if config.parallel == "fsdp" and processes > 1:
        return
    needed = 4 * 4 * sum(parameter.numel() for parameter in model.parameters())
    there = _memory(resolve_device(config.device))
    if there is not None and needed > there:
        sizes = {1: "autoencoder", 2: "transformer"}[stage]
        raise ConfigError(
            f"train: the model of stage {stage} needs {needed / 1e9:.3g} GB for its weights and "
            f"what trains them; got {there / 1e9:.3g} GB of memory. Lower the sizes of the {sizes}."
        )


def _memory(device: torch.device) -> int | None:
    """Return the bytes of memory of a device, None where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
