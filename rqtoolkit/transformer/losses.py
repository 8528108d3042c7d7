"""The training loss of an RQ-Transformer, in parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rqtoolkit.functional.cross_entropy import Targets, linear_cross_entropy
from rqtoolkit.functional.soft_targets import SoftTargets
from rqtoolkit.transformer.checks import check_inputs, check_targets
from rqtoolkit.transformer.passes import modulating, run_body, run_depth

if TYPE_CHECKING:
    from rqtoolkit.transformer.model import RQTransformer

__all__ = ["LossTerms", "compute_losses"]


@dataclass(frozen=True, eq=False)
class LossTerms:
    """Mean cross-entropies in nats.

    Attributes:
        levels: Of the codes of each level, shape (depth,).
        text: Of the next text token, over the sequences whose text was not dropped; None without
            text.
        text_weight: Share of the text in the total.
    """

    levels: Tensor
    text: Tensor | None
    text_weight: float

    @property
    def total(self) -> Tensor:
        """What training minimises: (1 − text_weight) · mean over levels + text_weight · text."""
        image = self.levels.mean()
        if self.text is None:
            return image
        return (1 - self.text_weight) * image + self.text_weight * self.text


def compute_losses(
    model: RQTransformer,
    codes: Tensor,
    cond: Tensor | None,
    targets: Tensor | SoftTargets | None,
    lengths: Tensor | None,
) -> LossTerms:
    """Do the work of `RQTransformer.loss_terms`, where the arguments are described."""
    where = "RQTransformer.loss"
    flat, told, real = check_inputs(model, where, codes, cond, lengths)
    if targets is not None:
        check_targets(where, targets, codes.shape, model.codebook_sizes)
        targets = targets.flatten(1, -3)
    rows, dropped = model.condition.drop(told)
    out = run_body(model, flat, rows)
    last = model.condition_length - 1
    contexts, vectors = out[:, last:], modulating(model, rows)
    if real is None:
        contexts, flat = contexts.flatten(0, 1), flat.flatten(0, 1)
        targets = None if targets is None else targets.flatten(0, 1)
    else:
        if vectors is not None:
            vectors = vectors.unsqueeze(1).expand_as(contexts)[real]
        contexts, flat = contexts[real], flat[real]
        targets = None if targets is None else targets[real]
    hidden = run_depth(model, contexts, flat, vectors)
    levels = torch.stack(_level_losses(model, hidden, flat, targets))
    if model.text_length is None:
        return LossTerms(levels, None, 0.0)
    texts, tokens = model.text_classifier_norm(out[:, :last]), told[:, 1:]
    if dropped is not None:  # a text that was not told cannot be continued
        texts, tokens = texts[~dropped.squeeze(1)], tokens[~dropped.squeeze(1)]
    weight, bias = model.text_classifier.weight, model.text_classifier.bias
    text = linear_cross_entropy(texts.flatten(0, 1), weight, bias, tokens.flatten())
    return LossTerms(levels, text, model.text_weight)


def _level_losses(
    model: RQTransformer, hidden: Tensor, codes: Tensor, targets: Tensor | SoftTargets | None
) -> list[Tensor]:
    """Mean cross-entropies for classifier inputs (N, depth, dim) and codes (N, depth)."""
    losses = []
    for level, x in enumerate(hidden.unbind(1)):
        weight, bias = model.classifier.table(level)
        target: Targets = codes[:, level]
        if isinstance(targets, SoftTargets):
            target = targets.level(level)
        elif targets is not None:
            target = targets[:, level, : len(bias)]
        losses.append(linear_cross_entropy(x, weight, bias, target))
    return losses
