"""Log-probabilities of semantic IDs: the depth transformer over the tree of prefixes, or beams."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from rqtoolkit.semantic_ids.decoding.beam_search import beam_search
from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable
from rqtoolkit.transformer.attention import KeyValueCache
from rqtoolkit.transformer.model import RQTransformer
from rqtoolkit.transformer.passes import classify

__all__ = ["CodeSteps", "PrefixTree", "beam_log_probabilities", "leaf_log_probabilities"]


@dataclass(frozen=True, eq=False)
class _Level:
    """What one more code takes.

    Nodes with a single leaf below are certain of all that follows and cost nothing: only the
    others are computed.

    Attributes:
        prefixes: Codes of the computed nodes of this level, shape (n, level).
        above: Place of each one's parent among the computed nodes of the level before, (n,).
        parents: Parent of each node of the next level, shape (m,), counted within this level.
        open: Which nodes of the next level have a computed parent, shape (e,).
        groups: Place of that parent among the computed nodes, shape (e,).
        codes: Their last codes, shape (e,).
    """

    prefixes: Tensor
    above: Tensor
    parents: Tensor
    open: Tensor
    groups: Tensor
    codes: Tensor


class PrefixTree:
    """A prefix table laid out for `leaf_log_probabilities`.

    Args:
        table: Semantic IDs that can be predicted.
        device: Where the model is.

    Attributes:
        leaves: Number of distinct semantic IDs, in the order of the table's leaves.
        computed: Nodes for which the depth transformer runs, for each user.
    """

    def __init__(self, table: PrefixTable, device: torch.device | str = "cpu") -> None:
        table = table.numpy()
        self.leaves = len(table)
        starts = table.level_starts
        below = np.zeros(starts[-1], np.int64)
        below[starts[-2] :] = 1
        for start, end in reversed(list(pairwise(starts[1:]))):
            np.add.at(below, table.parents[start:end], below[start:end])
        place = np.full(starts[-1], -1)
        self.levels: list[_Level] = []
        for level in range(table.length):
            start, end, stop = starts[level : level + 3]
            computed = np.flatnonzero(below[start:end] > 1) + start
            place[computed] = np.arange(len(computed))
            children = np.arange(end, stop)
            parents = table.parents[end:stop]
            is_open = place[parents] >= 0
            arrays = (
                table.prefixes(computed, level),
                place[table.parents[computed]] if level else np.zeros(len(computed), np.int64),
                parents - start,
                np.flatnonzero(is_open),
                place[parents[is_open]],
                table.node_codes[children[is_open]],
            )
            self.levels.append(_Level(*(torch.from_numpy(a).to(device) for a in arrays)))
        self.computed = sum(len(level.prefixes) for level in self.levels)


def leaf_log_probabilities(model: RQTransformer, contexts: Tensor, tree: PrefixTree) -> Tensor:
    """Return log p of every semantic ID of a tree, exactly.

    Each level is normalised over the codes that continue a prefix. A node of the tree costs one
    token of the depth transformer, which reads the keys and values of the prefix it extends; all
    users share the tree.

    Args:
        model: Unconditional model in eval mode.
        contexts: Outputs of the body, shape (B, dim).
        tree: Semantic IDs that can be.

    Returns:
        Shape (B, leaves), float32; a user's probabilities sum to 1.
    """
    batch = len(contexts)
    users = torch.arange(batch, device=contexts.device).unsqueeze(1)
    log_p = contexts.new_zeros(batch, 1, dtype=torch.float32)
    caches = model.depth_transformer.make_caches(model.depth)
    before = 1
    for depth, level in enumerate(tree.levels):
        count = len(level.prefixes)
        log_p = log_p[:, level.parents]
        if count == 0:
            continue
        if depth == 0:
            inputs = contexts.unsqueeze(1)
        else:
            inputs = model.embedding.depth_inputs(level.prefixes)[:, -1:].repeat(batch, 1, 1)
            caches = _take_caches(caches, (users * before + level.above).flatten())
        hidden = model.depth_transformer(inputs + model.embedding.levels[depth], caches)
        logits = classify(model, model.classifier_norm(hidden[:, 0]), depth)
        chosen = logits.view(batch, count, -1)[:, level.groups, level.codes].float()
        log_p[:, level.open] += _log_softmax_in_groups(chosen, level.groups, count)
        before = count
    return log_p


def _take_caches(caches: list[KeyValueCache], rows: Tensor) -> list[KeyValueCache]:
    """Return the caches of some rows, as often as they are named: what beams go on with."""
    return [cache.take(rows) for cache in caches]


def _log_softmax_in_groups(logits: Tensor, groups: Tensor, count: int) -> Tensor:
    """Normalise logits (B, E) over each of `count` groups of columns, (E,)."""
    shape = (len(logits), count)
    wide = groups.expand_as(logits)
    largest = logits.new_full(shape, -torch.inf).scatter_reduce_(1, wide, logits, "amax")
    shifted = logits - largest[:, groups]
    sums = logits.new_zeros(shape).index_add_(1, groups, shifted.exp())
    return shifted - sums.log()[:, groups]


class CodeSteps:
    """The model as a `Step` of `beam_search`: log p of the next code among those that exist.

    Args:
        model: Unconditional model in eval mode.
        contexts: Outputs of the body, shape (B, dim).
        table: Semantic IDs that can be, over which probabilities are normalised. The search may
            go over a subset of it: that changes what is found, not what it scores.
    """

    def __init__(self, model: RQTransformer, contexts: Tensor, table: PrefixTable) -> None:
        self.model, self.contexts, self.table = model, contexts, table
        self.caches = model.depth_transformer.make_caches(model.depth)
        self.width = 1

    def __call__(self, prefixes: Tensor, origins: Tensor) -> Tensor:
        """Return log-probabilities (B * P, K) after prefixes (B, P, level)."""
        model = self.model
        batch, width, level = prefixes.shape
        inputs = self.contexts.unsqueeze(1)
        if level:
            users = torch.arange(batch, device=origins.device).unsqueeze(1)
            self.caches = _take_caches(self.caches, (users * self.width + origins).flatten())
            inputs = model.embedding.depth_inputs(prefixes.flatten(0, 1))[:, -1:]
        self.width = width
        hidden = model.depth_transformer(inputs + model.embedding.levels[level], self.caches)
        logits = classify(model, model.classifier_norm(hidden[:, 0]), level).float()
        exists = self.table.mask(self.table.find(prefixes), level=level).view(logits.shape)
        return logits.masked_fill(~exists, torch.finfo(logits.dtype).min).log_softmax(-1)


def beam_log_probabilities(
    model: RQTransformer,
    contexts: Tensor,
    table: PrefixTable,
    *,
    beams: int,
    within: PrefixTable | None = None,
) -> Tensor:
    """Return log p of the semantic IDs that a beam search finds, -inf for the others.

    Args:
        model: Unconditional model in eval mode.
        contexts: Outputs of the body, shape (B, dim).
        table: Semantic IDs that can be.
        beams: Prefixes kept for each user.
        within: The subset of the table to search in; None is all of it.

    Returns:
        Shape (B, leaves of table), float32.
    """
    table = table.to(contexts.device)
    within = table if within is None else within.to(contexts.device)
    found = beam_search(CodeSteps(model, contexts, table), within, len(contexts), beams=beams)
    states = table.find(found.codes.clamp_min(0))
    leaves = (states - table.level_starts[-2]).clamp_min(0)
    log_p = contexts.new_full((len(contexts), len(table)), -torch.inf, dtype=torch.float32)
    # Past the last one found, scores are -inf and change nothing.
    return log_p.scatter_reduce_(1, leaves, found.scores.float(), "amax")
