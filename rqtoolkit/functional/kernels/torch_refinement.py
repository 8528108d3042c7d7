"""Iterated conditional modes over codes, in plain torch: what the compiled kernel must equal.

A *state* is what scores follow from, a tensor with a row per vector: either the scores of all
codewords given the other levels' codes (`ProductScores`), or what the codes leave over
(`ResidualScores`). Every function is a function of states and codes, and changes neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rqtoolkit.functional.assign import half_distances
from rqtoolkit.functional.codebook_products import CodebookProducts

__all__ = ["ProductScores", "ResidualScores", "refine"]


class Scores(Protocol):
    """Half the error of every choice at one level, up to what is common to all of them."""

    def of_level(self, state: Tensor, level: int, current: Tensor) -> Tensor:
        """Return scores (N, K) given the codes of the other levels; current is (N,)."""

    def moved(self, state: Tensor, level: int, old: Tensor, new: Tensor) -> Tensor:
        """Return the state after codes (N,) of one level have changed."""


@dataclass(frozen=True)
class ProductScores:
    """Scores by inner products between codewords; the state holds all of them, (N, columns)."""

    products: CodebookProducts

    def start(self, dots: Tensor, codes: Tensor) -> Tensor:
        """Return the state of codes (N, depth); dots are ⟨x, c⟩ of these levels, (N, columns)."""
        state = self.products.offsets[: dots.shape[1]] - dots
        for level in range(codes.shape[1]):
            before, after = self.products.rows_of(level)
            begin, end = self.products.starts[level : level + 2]
            state[:, :begin] += before[codes[:, level]]
            state[:, end:] += after[:, : state.shape[1] - end][codes[:, level]]
        return state

    def of_level(self, state: Tensor, level: int, current: Tensor) -> Tensor:  # noqa: ARG002
        """Return the level's columns."""
        begin = self.products.starts[level]
        return state[:, begin : begin + self.products.sizes[level]]

    def moved(self, state: Tensor, level: int, old: Tensor, new: Tensor) -> Tensor:
        """Add the difference of two rows of inner products; 0 where the code stays."""
        before, after = self.products.rows_of(level)
        begin, end = self.products.starts[level : level + 2]
        state = state.clone()
        state[:, :begin] += before[new] - before[old]
        after = after[:, : state.shape[1] - end]
        state[:, end:] += after[new] - after[old]
        return state


@dataclass(frozen=True)
class ResidualScores:
    """Scores by distances to what the other levels leave over; the state is x − Σ c, (N, dim)."""

    tables: Sequence[Tensor]
    penalties: Sequence[Tensor] | None

    def start(self, x: Tensor, codes: Tensor) -> Tensor:
        """Return the state of codes (N, depth)."""
        for level, table in enumerate(self.tables):
            x = x - table[codes[:, level]]
        return x

    def of_level(self, state: Tensor, level: int, current: Tensor) -> Tensor:
        """Return half the squared distances, less a part common to a row, and half the penalty."""
        table = self.tables[level]
        scores = half_distances(state + table[current], table)[0]
        return scores if self.penalties is None else scores + self.penalties[level] / 2

    def moved(self, state: Tensor, level: int, old: Tensor, new: Tensor) -> Tensor:
        """Exchange a codeword."""
        table = self.tables[level]
        return torch.where((old == new)[:, None], state, state + table[old] - table[new])


def refine(
    state: Tensor,
    codes: Tensor,
    draws: Tensor,
    *,
    scores: Scores,
    sizes: Sequence[int],
    rounds: int,
) -> Tensor:
    """Sweep over the levels, then perturb one code at a time and sweep again, keeping the better.

    Perturbation p gives level −1 − p (mod depth) the code `draws[:, p]` modulo its size. The
    sweeps that follow begin at the level after it, so that the others answer before it may return.

    Args:
        state: Of the codes.
        codes: Shape (N, depth), int64.
        draws: Whole numbers of at least 0, shape (N, perturbations), int64.
        scores: Where scores come from.
        sizes: Codewords of each level.
        rounds: Sweeps at most; after a perturbation at least one.

    Returns:
        Codes, shape (N, depth), int64.
    """
    depth = len(sizes)
    change = state.new_zeros(len(state))
    state, codes, _ = _descend(state, codes, scores, change, rounds=rounds, first=0)
    for index in range(draws.shape[1]):
        level = depth - 1 - index % depth
        drawn = draws[:, index] % sizes[level]
        tried, tried_codes, change = _choose(state, codes, scores, level, drawn)
        tried, tried_codes, change = _descend(
            tried, tried_codes, scores, change, rounds=max(1, rounds), first=level + 1
        )
        better = (change < 0)[:, None]
        state = torch.where(better, tried, state)
        codes = torch.where(better, tried_codes, codes)
    return codes


def _descend(
    state: Tensor,
    codes: Tensor,
    scores: Scores,
    change: Tensor,
    *,
    rounds: int,
    first: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give one level after another its best code; add what that changes to `change`."""
    depth = codes.shape[1]
    for step in range(rounds * depth):
        level = (first + step) % depth
        current = codes[:, level]
        of_level = scores.of_level(state, level, current)
        least = of_level.min(dim=1, keepdim=True).values
        lower = least[:, 0] < of_level.gather(1, current[:, None])[:, 0]
        lowest = (of_level == least).to(torch.uint8).argmax(dim=1)  # the first of equal ones
        new = torch.where(lower, lowest, current)
        state, codes, step_change = _choose(state, codes, scores, level, new, of_level)
        change = change + step_change
    return state, codes, change


def _choose(
    state: Tensor,
    codes: Tensor,
    scores: Scores,
    level: int,
    new: Tensor,
    of_level: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Set one level's codes; return the state, the codes and the change of half the error."""
    old = codes[:, level]
    if of_level is None:
        of_level = scores.of_level(state, level, old)
    change = of_level.gather(1, new[:, None]) - of_level.gather(1, old[:, None])
    changed = codes.clone()
    changed[:, level] = new
    return scores.moved(state, level, old, new), changed, change[:, 0]
