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

__all__ = ["CodeSteps", "PrefixTree", "best_below", "leaf_log_probabilities", "search_codes"]

_USERS = 16  # whose trees are walked at once; more would leave the processor's cache


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
    parts = [_walk_tree(model, part, tree) for part in contexts.split(_USERS)]
    return torch.cat([contexts.new_empty(0, tree.leaves, dtype=torch.float32), *parts])


def _walk_tree(model: RQTransformer, contexts: Tensor, tree: PrefixTree) -> Tensor:
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


def best_below(values: Tensor, table: PrefixTable) -> Tensor:
    """Return the largest value among the leaves below every node of a table.

    Args:
        values: Of the leaves, shape (B, leaves).
        table: On their device.

    Returns:
        Shape (B, nodes).
    """
    levels, starts = [values], table.level_starts
    for level in reversed(range(table.length)):
        above, start, end = starts[level : level + 3]
        parents = (table.parents[start:end] - above).expand(len(values), -1)
        lowest = values.new_full((len(values), start - above), -torch.inf)
        levels.insert(0, lowest.scatter_reduce_(1, parents, levels[0], "amax"))
    return torch.cat(levels, 1)


class CodeSteps:
    """A model and values of its leaves as a `Step` of `beam_search`.

    The search keeps the prefixes with the largest

        share · log p(prefix) + the best value below it.

    No semantic ID that begins with a prefix can score more, since log p only falls with every
    code: a beam is dropped only for others that may reach higher.

    Args:
        model: Unconditional model in eval mode.
        contexts: Outputs of the body, shape (B, dim).
        table: Semantic IDs that can be, over which probabilities are normalised.
        best: Best values below its nodes (`best_below`), shape (B, nodes); -inf for what is not to
            be found.
        share: Weight of log p.
    """

    def __init__(
        self,
        model: RQTransformer,
        contexts: Tensor,
        table: PrefixTable,
        best: Tensor,
        *,
        share: float = 1.0,
    ) -> None:
        self.model, self.contexts, self.table = model, contexts, table
        self.best, self.share = best, share
        self.caches = model.depth_transformer.make_caches(model.depth)
        self.width = 1

    def __call__(self, prefixes: Tensor, origins: Tensor) -> Tensor:
        """Return what each next code adds, (B * P, K), after prefixes (B, P, level)."""
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
        states = self.table.find(prefixes).flatten()
        beams, children = self.table.children(states)
        codes = self.table.node_codes[children]
        log_p = _log_softmax_in_groups(logits[beams, codes].unsqueeze(0), beams, batch * width)
        added = torch.full_like(logits, -torch.inf)
        added[beams, codes] = self.share * log_p[0] + self.best[beams // width, children]
        if level:
            above = self.best[beams // width, states[beams]]
            added[beams, codes] -= above.masked_fill(above.isinf(), 0)
        return added


def search_codes(
    model: RQTransformer,
    contexts: Tensor,
    table: PrefixTable,
    values: Tensor,
    *,
    share: float,
    beams: int,
) -> Tensor:
    """Return share · log p of the semantic IDs that a beam search finds, -inf for the others.

    Args:
        model: Unconditional model in eval mode.
        contexts: Outputs of the body, shape (B, dim).
        table: Semantic IDs that can be, on their device.
        values: What is added to their scores, shape (B, leaves); -inf for what is not to be found.
        share: Weight of log p.
        beams: Prefixes kept for each user.

    Returns:
        Shape (B, leaves), float32.
    """
    steps = CodeSteps(model, contexts, table, best_below(values, table), share=share)
    found = beam_search(steps, table, len(contexts), beams=beams)
    states = table.find(found.codes.clamp_min(0))
    leaves = (states - table.level_starts[-2]).clamp_min(0)
    past = found.scores == -torch.inf  # what follows the last one found
    added = (found.scores - values.gather(1, leaves)).masked_fill(past, -torch.inf)
    return torch.full_like(values, -torch.inf).scatter_reduce_(1, leaves, added, "amax")
