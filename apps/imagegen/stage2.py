"""Stage 2: train the RQ-Transformer on codes of the frozen RQ-VAE."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagegen.autoencoder import RQVAE
from imagegen.code_cache import CodeCache
from imagegen.data import BrokenImages, ImageData, ImageSet, Tasks, batches
from imagegen.distributed import spread, trained
from imagegen.encoding import EncodedBatch, encode_batches
from imagegen.pictures import save_grid
from imagegen.reconstruct import encode_images
from imagegen.runs import Run
from imagegen.sample import balanced_labels, sample_images
from imagegen.settings import Config
from imagegen.shifts import conditions, count_shifts
from imagegen.stage2_step import parameter_groups, transformer_loss
from imagegen.text import Tokenizer, load_run_tokenizer
from imagegen.training import step_seed, train_loop
from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.transformer import RQTransformer

__all__ = ["build_transformer", "held_out_bits", "held_out_text_bits", "train_stage2"]

_SAMPLES = 40  # drawn as the run goes
_HELD_OUT = 1000  # images measured as the run goes, at most


def build_transformer(
    config: Config,
    autoencoder: RQVAE,
    num_classes: int | None,
    *,
    tokenizer: Tokenizer | None = None,
) -> RQTransformer:
    """Build the RQ-Transformer a configuration describes for the codes of an RQ-VAE.

    Args:
        config: Configuration of the run.
        autoencoder: The RQ-VAE.
        num_classes: Classes of the images, None without.
        tokenizer: Encodes the texts that take the place of classes; None without.

    Raises:
        ConfigError: If the autoencoder has no codes, or the sizes do not go together.
    """
    if not autoencoder.quantizes:
        raise ConfigError(
            "train: autoencoder.bottleneck=kl has no codes for stage 2 to model; got a request for "
            "it. Train stage 1 alone, or set autoencoder.bottleneck to rq."
        )
    sizes = dataclasses.asdict(config.transformer)
    del sizes["text_length"]
    shifts = count_shifts(config.stage2.shift)
    told: dict[str, Any] = {}
    if tokenizer is not None:
        if shifts > 1:
            raise ConfigError(
                f"train: stage2.shift={config.stage2.shift} cannot be told beside a text; got "
                f"data.tokenizer={config.data.tokenizer}. Set stage2.shift to 0."
            )
        told = {"text_length": tokenizer.length, "text_vocab": tokenizer.vocabulary}
        told["text_weight"] = config.stage2.text_weight
    elif num_classes or shifts > 1:
        told = {"num_classes": (num_classes or 1) * shifts}
    return RQTransformer(
        positions=autoencoder.grid,
        depth=config.quantizer.depth,
        codebook_size=config.quantizer.codebook_size,
        codebooks=autoencoder.quantizer.codebooks,
        **sizes,
        **told,
    )


@torch.no_grad()
def held_out_bits(
    model: RQTransformer, codes: Tensor, cond: Tensor | None, *, batch_size: int = 256
) -> list[float]:
    """Return the mean bits the model spends on a code, per depth.

    Args:
        model: RQ-Transformer in eval mode.
        codes: Codes of held-out images, shape (N, h, w, depth).
        cond: Their conditions, shape (N,) or (N, n), or None.
        batch_size: Images at a time.
    """
    total = torch.zeros(codes.shape[-1], dtype=torch.float64)
    for part, told in _parts(model, codes, cond, batch_size):
        total += model.losses(part, cond=told).double().cpu() * len(part)
    return [float(nats) / len(codes) / math.log(2) for nats in total]


@torch.no_grad()
def held_out_text_bits(
    model: RQTransformer, codes: Tensor, text: Tensor, *, batch_size: int = 256
) -> float:
    """Return the mean bits that a model of text and images spends on a token of the text.

    Args:
        model: RQ-Transformer in eval mode.
        codes: Codes of held-out images, shape (N, h, w, depth).
        text: Tokens of their texts, shape (N, n), of which the first is given.
        batch_size: Images at a time.
    """
    total = 0.0
    for part, told in _parts(model, codes, text, batch_size):
        nats = model.loss_terms(part, cond=told).text
        assert nats is not None, "the model has no text"
        total += float(nats) * len(part)
    return total / len(codes) / math.log(2)


def _parts(
    model: RQTransformer, codes: Tensor, cond: Tensor | None, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    device = next(model.parameters()).device
    for start in range(0, len(codes), batch_size):
        rows = slice(start, start + batch_size)
        yield codes[rows].to(device), None if cond is None else cond[rows].to(device)


def train_stage2(
    run: Run,
    autoencoder: RQVAE,
    train: ImageData,
    held_out: ImageSet,
    *,
    progress: Progress | None = None,
) -> RQTransformer:
    """Train the run's RQ-Transformer to the end, from its last checkpoint where there is one.

    Images are encoded at every step, or read from the run's code cache. Codes are drawn anew from
    either: with stochastic codes no two passes over the data are the same.

    Args:
        run: Folder and configuration.
        autoencoder: Finished RQ-VAE; stays as it is.
        train: Images to learn from.
        held_out: Images to measure on.
        progress: Called as progress(description, done, total).

    Returns:
        The finished model in eval mode, as saved in `run.transformer_path`.

    Raises:
        ConfigError: If the autoencoder has no codes, or a size does not fit the data.
        DataError: If the loss is no longer finite, or a cached latent beyond float16.
        ArtifactError: If nothing can be written, or too many images cannot be read.
    """
    config, seed, device = run.config.stage2, run.config.seed, run.device
    half = (config.dtype or run.config.dtype) == "bfloat16"
    autoencoder = autoencoder.to(device).eval().requires_grad_(False)
    tokenizer = None if run.config.data.tokenizer is None else load_run_tokenizer(run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(seed, 2))
        model = build_transformer(run.config, autoencoder, train.num_classes, tokenizer=tokenizer)
    model.checkpointing = config.checkpointing
    loss_of = spread(
        model,
        run.ranks,
        mode=run.config.parallel,
        device=device,
        method="loss",
        dtype=torch.bfloat16 if half else torch.float32,
    )
    optimizer = torch.optim.AdamW(
        parameter_groups(trained(loss_of), config.weight_decay), config.learning_rate, config.betas
    )
    rules = {
        name: getattr(config, name)
        for name in ("tau", "relative_tau", "soft_targets", "stochastic_codes")
    }

    def compute(
        step: int, batch: EncodedBatch, *, share: float
    ) -> tuple[Tensor, Callable[[], dict[str, Any]]]:
        del step
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = transformer_loss(loss_of, autoencoder.quantizer, batch, **rules)
        (share * loss).backward()
        return loss.detach(), dict

    observe = _observer(run, model, autoencoder, train, held_out, tokenizer)
    train_loop(
        run,
        stage=2,
        config=config,
        models={"transformer": loss_of},
        optimizers={"transformer": optimizer},
        compute=compute,
        observe=observe,
        finish=lambda: model.save(run.transformer_path),
        batches=_batches(run, autoencoder, train, tokenizer, progress),
        progress=progress,
    )
    return RQTransformer.load(run.transformer_path, device=device).eval()


def _batches(
    run: Run,
    autoencoder: RQVAE,
    train: ImageData,
    tokenizer: Tokenizer | None,
    progress: Progress | None,
) -> Callable[[int], Iterator[EncodedBatch]]:
    """Return what gives this process's batches from a step on; a cache is built first."""
    config, data, ranks = run.config.stage2, run.config.data, run.ranks
    seed = step_seed(run.config.seed, 2, 0)
    shares: dict[str, Any] = {
        "accumulate": config.accumulate,
        "rank": ranks.rank,
        "ranks": ranks.size,
    }
    drawn = config.soft_targets or config.stochastic_codes
    encoding: dict[str, Any] = {
        "kind": "latents" if drawn else "codes",
        "reach": config.shift,
        "unmoved": config.unshifted,
        "seed": seed,
    }
    broken = BrokenImages(train, run.unreadable_path)
    if config.cache:
        reading = {name: getattr(data, name) for name in ("fit", "crop", "flip")}
        cache = CodeCache(
            run.cache, autoencoder, train, copies=config.cache, reading=reading, **encoding
        )
        cache.build(ranks=ranks, workers=data.workers, broken=broken, progress=progress)

    def cached(start: int) -> Iterator[EncodedBatch]:
        steps = range(start, config.steps)
        tasks = Tasks(len(train), config.batch_size, steps, seed, **shares)
        return cache.batches(tasks, tokenizer=tokenizer)

    def encoded(start: int) -> Iterator[EncodedBatch]:
        images = batches(
            train,
            batch_size=config.batch_size,
            steps=config.steps,
            seed=seed,
            start_step=start,
            workers=data.workers,
            tokenizer=tokenizer,
            pin_memory=run.device.type == "cuda",
            broken=broken,
            **shares,
        )
        return encode_batches(
            autoencoder, images, start_step=start, accumulate=config.accumulate, **encoding
        )

    return cached if config.cache else encoded


def _observer(
    run: Run,
    model: RQTransformer,
    autoencoder: RQVAE,
    train: ImageData,
    held_out: ImageSet,
    tokenizer: Tokenizer | None,
) -> Callable[[int], dict[str, Any]]:
    """Return what draws samples and measures held-out images; the main process alone calls it."""
    some = held_out.subset(slice(None, None, max(1, len(held_out) // _HELD_OUT)))
    sampling = dataclasses.asdict(run.config.sampling)
    del sampling["accept"]
    reach, kinds = run.config.stage2.shift, train.num_classes
    labels = None if some.labels is None else torch.from_numpy(some.labels)
    told = conditions(labels, torch.zeros(len(some), dtype=torch.int64), reach=reach)
    asked: dict[str, Any] = {"labels": balanced_labels(_SAMPLES, range(kinds)) if kinds else None}
    text = None
    if tokenizer is not None:
        told = text = tokenizer.encode(some.texts or ())
        asked = {"text": text.numpy()[np.arange(_SAMPLES) % len(some)]}

    @functools.cache
    def codes() -> Tensor:
        return encode_images(autoencoder, some.images)

    def observe(step: int) -> dict[str, Any]:
        drawn = sample_images(
            model,
            autoencoder,
            _SAMPLES,
            reach=reach,
            seed=step_seed(run.config.seed, 2, 1),
            **asked,
            **sampling,
        )
        picture = run.samples / f"samples-{step:07d}.png"
        save_grid(picture, np.split(drawn.images, 4))
        bits = held_out_bits(model, codes(), told)
        figures: dict[str, Any] = {
            "held_out_bits_per_code": bits,
            "samples": picture,
            "held_out_bits_per_image": math.prod(autoencoder.grid) * sum(bits),
        }
        if text is not None:
            figures["held_out_bits_per_text_token"] = held_out_text_bits(model, codes(), text)
        return figures

    return observe
