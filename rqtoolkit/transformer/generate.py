"""Sampling of code stacks with static caches: each position goes through the body once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError, ShapeError
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.transformer.attention import KeyValueCache
from rqtoolkit.transformer.checks import (
    check_condition,
    check_count,
    check_integers,
    check_range,
)
from rqtoolkit.transformer.sampling import SamplingRule, sampling_rules

if TYPE_CHECKING:
    from rqtoolkit.transformer.model import RQTransformer

__all__ = ["generate_codes"]


def generate_codes(
    model: RQTransformer,
    num_samples: int,
    *,
    cond: Tensor | None,
    temperature: float | Sequence[float],
    top_k: int | Sequence[int | None] | None,
    top_p: float | Sequence[float | None] | None,
    cfg_scale: float,
    prefix: Tensor | None,
    length: int | None,
    generator: torch.Generator | None,
    progress: Progress | None,
) -> Tensor:
    """Do the work of `RQTransformer.generate`, where the arguments are described."""
    where = "RQTransformer.generate"
    device = model.embedding.positions.device
    check_count(where, "num_samples", num_samples)
    rules = sampling_rules(model.depth, temperature=temperature, top_k=top_k, top_p=top_p)
    cond = cond.to(device) if isinstance(cond, Tensor) else cond
    cond = check_condition(where, cond, num_classes=model.num_classes, batch=num_samples)
    null_class = _null_class(where, model, cfg_scale)
    positions = _check_length(where, model, length)
    codes = torch.zeros(
        num_samples, math.prod(positions), model.depth, dtype=torch.int64, device=device
    )
    done = 0
    if prefix is not None:
        done = _check_prefix(where, model, prefix, codes)
        codes[:, :done] = prefix.to(device)
    if generator is not None and generator.device.type != device.type:
        raise ConfigError(
            f"{where}: generator is on {generator.device} and the model on {device}. "
            f"Make it with torch.Generator({device.type!r})."
        )
    rows = codes.new_zeros(num_samples, 1) if cond is None else cond
    if null_class is not None:
        rows = torch.cat([rows, torch.full_like(rows, null_class)])
    with torch.inference_mode(), _evaluating(model):
        _fill(model, codes, done, rows, rules, cfg_scale, generator, progress)
    return codes.view(num_samples, *positions, model.depth)


def _fill(
    model: RQTransformer,
    codes: Tensor,
    done: int,
    rows: Tensor,
    rules: list[SamplingRule],
    cfg_scale: float,
    generator: torch.Generator | None,
    progress: Progress | None,
) -> None:
    """Sample codes (B, T, depth) in place from position `done` on.

    Rows of the condition table are (B, 1); with guidance (2 B, 1), the null class second.
    """
    total = codes.shape[1]
    repeats = rows.shape[0] // codes.shape[0]
    body_caches = model.body.make_caches(model.condition_length + total - 1)
    depth_caches = model.depth_transformer.make_caches(model.depth)
    inputs = model.embed_condition(rows)
    if done:
        past = model.embedding.body_inputs(codes[:, :done]).repeat(repeats, 1, 1)
        inputs = torch.cat([inputs, past], 1)
    for position in range(done, total):
        report(progress, "Sampling", position, total)
        context = model.body(inputs, body_caches)[:, -1:]
        new = _draw_position(model, context, depth_caches, rules, cfg_scale, generator)
        codes[:, position] = new
        inputs = model.embedding.body_inputs(new.unsqueeze(1), start=position)
        inputs = inputs.repeat(repeats, 1, 1)
    report(progress, "Sampling", total, total)


def _draw_position(
    model: RQTransformer,
    context: Tensor,
    caches: list[KeyValueCache],
    rules: list[SamplingRule],
    cfg_scale: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw the codes (B, depth) of one position given the body's output (B or 2 B, 1, dim)."""
    for cache in caches:
        cache.reset()
    drawn: list[Tensor] = []
    inputs = context
    partial_sum: Tensor | None = None
    for level, rule in enumerate(rules):
        if level:
            word = model.embedding.codewords(drawn[-1].unsqueeze(-1), level=level - 1)
            partial_sum = word if partial_sum is None else partial_sum + word
            inputs = model.embedding.depth_inputs(partial_sum)
            inputs = inputs.repeat(context.shape[0] // inputs.shape[0], 1, 1)
        hidden = model.depth_transformer(inputs + model.embedding.levels[level], caches)
        logits = model.classify(hidden[:, 0], level)
        if cfg_scale != 1:
            with_class, without = logits.float().chunk(2)
            logits = without + cfg_scale * (with_class - without)
        drawn.append(rule.draw(logits, generator=generator))
    return torch.stack(drawn, -1)


def _null_class(where: str, model: RQTransformer, cfg_scale: float) -> int | None:
    """Return the row that guidance compares with, None where guidance is off."""
    if cfg_scale == 1:
        return None
    if not math.isfinite(cfg_scale):
        raise ConfigError(f"{where}: cfg_scale={cfg_scale} must be finite.")
    if model.null_class is None:
        raise ConfigError(
            f"{where}: cfg_scale={cfg_scale} needs a model that was trained to do without its "
            "class; got one with label_dropout=0. Pass cfg_scale=1, or train with label_dropout."
        )
    return model.null_class


def _check_length(where: str, model: RQTransformer, length: int | None) -> tuple[int, ...]:
    if length is None:
        return model.positions
    if len(model.positions) != 1:
        raise ConfigError(
            f"{where}: length={length} needs one-dimensional positions; "
            f"got positions={model.positions}. Leave length out."
        )
    if check_count(where, "length", length) > model.positions[0]:
        raise ConfigError(
            f"{where}: length={length} is over the model's maximum; "
            f"got positions={model.positions}."
        )
    return (length,)


def _check_prefix(where: str, model: RQTransformer, prefix: Tensor, codes: Tensor) -> int:
    """Return how many positions of codes (B, T, depth) a valid prefix fills."""
    batch, total, depth = codes.shape
    check_integers(where, "prefix", prefix)
    if (
        prefix.ndim != 3
        or (prefix.shape[0], prefix.shape[2]) != (batch, depth)
        or prefix.shape[1] > total
    ):
        raise ShapeError(
            f"{where}: prefix must have shape ({batch}, T0, {depth}) with T0 at most {total}, "
            f"positions in raster order; got shape {tuple(prefix.shape)}. "
            "Flatten the grid with codes.flatten(1, -2) and cut it."
        )
    check_range(where, prefix.long(), model.codebook_sizes)
    return prefix.shape[1]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and give every submodule its own mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
