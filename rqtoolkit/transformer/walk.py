"""The walk over a model's codes with static caches: each position goes through the body once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError, ShapeError
from rqtoolkit.transformer.attention import KeyValueCache
from rqtoolkit.transformer.checks import (
    check_count,
    check_integers,
    check_range,
)
from rqtoolkit.transformer.passes import classify, condition_inputs, modulating, rotation

if TYPE_CHECKING:
    from rqtoolkit.transformer.model import RQTransformer

__all__ = ["Choose", "walk_codes"]

Choose = Callable[[int, int, Tensor], Tensor]
"""Chooses codes (B,), int64, from (position, level, logits (B, K_level), float32)."""


def walk_codes(
    model: RQTransformer,
    where: str,
    num_samples: int,
    choose: Choose,
    cond: Tensor | None,
    cfg_scale: float,
    prefix: Tensor | None,
    length: int | None,
) -> Tensor:
    """Do the work of `RQTransformer.walk`, where the arguments are described."""
    device = model.embedding.positions.device
    check_count(where, "num_samples", num_samples)
    cond = cond.to(device) if isinstance(cond, Tensor) else cond
    rows = model.condition.rows(where, cond, num_samples)
    if cfg_scale != 1:
        null_row = _null_row(where, model, cfg_scale)
        rows = torch.cat([rows, torch.full_like(rows, null_row)])
    positions = _check_length(where, model, length)
    codes = torch.zeros(
        num_samples, math.prod(positions), model.depth, dtype=torch.int64, device=device
    )
    done = 0
    if prefix is not None:
        done = _check_prefix(where, model, prefix, codes)
        codes[:, :done] = prefix.to(device)
    with torch.inference_mode(), _evaluating(model):
        _fill(model, codes, done, rows, choose, cfg_scale)
    return codes.view(num_samples, *positions, model.depth)


def _fill(
    model: RQTransformer,
    codes: Tensor,
    done: int,
    rows: Tensor,
    choose: Choose,
    cfg_scale: float,
) -> None:
    """Choose codes (B, T, depth) in place from position `done` on.

    Rows of the condition table are (B, n); with guidance (2 B, n), the null condition second.
    """
    total = codes.shape[1]
    repeats = rows.shape[0] // codes.shape[0]
    body_caches = model.body.make_caches(model.condition_length + total - 1)
    depth_caches = model.depth_transformer.make_caches(model.depth)
    table, cond = rotation(model), modulating(model, rows)
    inputs = condition_inputs(model, rows)
    if done:
        past = model.embedding.body_inputs(codes[:, :done]).repeat(repeats, 1, 1)
        inputs = torch.cat([inputs, past], 1)
    for position in range(done, total):
        context = model.body(inputs, body_caches, rotation=table, cond=cond)[:, -1:]
        ask = partial(choose, position)
        chosen = _choose_position(model, context, depth_caches, ask, cond, cfg_scale)
        codes[:, position] = chosen
        inputs = model.embedding.body_inputs(chosen.unsqueeze(1), start=position)
        inputs = inputs.repeat(repeats, 1, 1)


def _choose_position(
    model: RQTransformer,
    context: Tensor,
    caches: list[KeyValueCache],
    choose: Callable[[int, Tensor], Tensor],
    cond: Tensor | None,
    cfg_scale: float,
) -> Tensor:
    """Choose the codes (B, depth) of one position given the body's output (B or 2 B, 1, dim)."""
    for cache in caches:
        cache.reset()
    chosen: list[Tensor] = []
    inputs = context
    words: Tensor | None = None
    for level in range(model.depth):
        if level:
            inputs, words = model.embedding.next_depth_input(chosen[-1], level - 1, words)
            inputs = inputs.repeat(context.shape[0] // inputs.shape[0], 1, 1)
        inputs = inputs + model.embedding.levels[level]
        hidden = model.depth_transformer(inputs, caches, cond=cond)
        logits = classify(model, model.classifier_norm(hidden[:, 0]), level).float()
        if cfg_scale != 1:
            told, without = logits.chunk(2)
            logits = without + cfg_scale * (told - without)
        chosen.append(choose(level, logits))
    return torch.stack(chosen, -1)


def _null_row(where: str, model: RQTransformer, cfg_scale: float) -> int:
    """Return the row of the condition table that guidance compares with."""
    if not math.isfinite(cfg_scale):
        raise ConfigError(f"{where}: cfg_scale={cfg_scale} must be finite.")
    if model.condition.null_row is None:
        raise ConfigError(
            f"{where}: cfg_scale={cfg_scale} needs a model that was trained to do without its "
            "condition; got one with label_dropout=0. Pass cfg_scale=1, or train with "
            "label_dropout."
        )
    return model.condition.null_row


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
