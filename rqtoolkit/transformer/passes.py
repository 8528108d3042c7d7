"""One pass over known codes (teacher forcing), and what it shares with the cached walk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from rqtoolkit.transformer.rotary import body_coordinates, rotary_table

if TYPE_CHECKING:
    from rqtoolkit.transformer.model import RQTransformer

__all__ = ["classify", "condition_inputs", "modulating", "rotation", "run_body", "run_depth"]


def condition_inputs(model: RQTransformer, rows: Tensor) -> Tensor:
    """Embed rows of the condition table, shape (B, n), as the first n body inputs."""
    return model.condition(rows) + model.condition_positions


def modulating(model: RQTransformer, rows: Tensor) -> Tensor | None:
    """Return what modulates the blocks, (B, dim), for condition rows (B, 1); None if off."""
    return model.condition(rows[:, 0]) if model.adaln else None


def rotation(model: RQTransformer) -> Tensor | None:
    """Return the rotary table of all body inputs, None if off."""
    if not model.rotary:
        return None
    weight = model.embedding.positions
    coordinates = body_coordinates(model.positions, model.condition_length, weight.device)
    exact = torch.promote_types(weight.dtype, torch.float32)
    return rotary_table(coordinates, model.dim // model.num_heads, exact)


def run_body(model: RQTransformer, codes: Tensor, rows: Tensor) -> Tensor:
    """Run the body over condition rows (B, n) and codes (B, T, depth).

    Returns:
        Outputs (B, n + T - 1, dim): n - 1 that continue a text, then the T contexts.
    """
    inputs = [condition_inputs(model, rows), model.embedding.body_inputs(codes[:, :-1])]
    cond = modulating(model, rows)
    return model.body(torch.cat(inputs, 1), rotation=rotation(model), cond=cond)


def run_depth(model: RQTransformer, contexts: Tensor, codes: Tensor, cond: Tensor | None) -> Tensor:
    """Run the depth transformer over contexts (N, dim) and codes (N, depth).

    Args:
        model: Model.
        contexts: Outputs of the body.
        codes: Codes of the positions they belong to; the last level is not read.
        cond: What `modulating` gives, (B, dim), each for N / B contexts in turn.

    Returns:
        Normalised outputs (N, depth, dim), as the classifier takes them.
    """
    inputs = [contexts.unsqueeze(1), model.embedding.depth_inputs(codes[:, :-1])]
    out = model.depth_transformer(torch.cat(inputs, 1) + model.embedding.levels, cond=cond)
    return model.classifier_norm(out)


def classify(model: RQTransformer, hidden: Tensor, level: int) -> Tensor:
    """Map what `run_depth` gives at one level, (N, dim), to logits (N, K_level)."""
    return F.linear(hidden, *model.classifier.table(level))
