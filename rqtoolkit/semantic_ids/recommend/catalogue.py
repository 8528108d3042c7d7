"""The items of a set of sequences as a trained model sees them: codes, memories, leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.errors import DataError
from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable
from rqtoolkit.semantic_ids.ids import SemanticIDs
from rqtoolkit.semantic_ids.recommend.ranking import PrefixTree

__all__ = ["Catalogue", "codes_of"]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items in the order of `Sequences.item_ids`.

    Attributes:
        item_ids: As in the sequences, shape (N,).
        version: Of the semantic IDs, which may grow.
        codes: Shape (N, length), int64.
        known: Row of each item's codes among those met in training, shape (N,); -1 for others.
        leaves: Leaf of each item, counted from the table's first, shape (N,).
        table: Of all items' codes, on the device of the model; row i is item i.
        tree: The table as `leaf_log_probabilities` reads it.
    """

    item_ids: NDArray
    version: str
    codes: Tensor
    known: Tensor
    leaves: Tensor
    table: PrefixTable
    tree: PrefixTree

    @classmethod
    def of(
        cls,
        where: str,
        ids: SemanticIDs,
        item_ids: NDArray,
        known_codes: Tensor,
        codebook_sizes: tuple[int, ...],
    ) -> Catalogue:
        """Look the items up.

        Args:
            where: Place for messages.
            ids: Semantic IDs of at least these items.
            item_ids: Items of the sequences, shape (N,).
            known_codes: Codes met in training, shape (M, length).
            codebook_sizes: Entries of each level in the model.

        Raises:
            DataError: If an item has no semantic ID, or one whose codes the model has no room for.
        """
        codes = codes_of(where, ids, item_ids)
        if (beyond := (codes >= codebook_sizes).any(1)).any():
            raise DataError(
                f"{where}: {beyond.sum()} items have codes beyond the model's codebook sizes "
                f"{codebook_sizes}; got {codes[beyond][0].tolist()}. Train again, or make IDs "
                'with collisions="match", which need no larger counter.'
            )
        device = known_codes.device
        table = PrefixTable(codes, codebook_sizes)
        states = table.find(codes)
        return cls(
            item_ids=item_ids,
            version=ids.version,
            codes=torch.from_numpy(codes).to(device),
            known=torch.from_numpy(_rows_among(known_codes.cpu().numpy(), codes)).to(device),
            leaves=torch.from_numpy(states - table.level_starts[-2]).to(device),
            table=table.to(device),
            tree=PrefixTree(table, device),
        )

    @property
    def new(self) -> Tensor:
        """Which items were not met in training, shape (N,)."""
        return self.known < 0

    def at_leaves(self, values: Tensor) -> Tensor:
        """Return the largest of values (B, N) at each leaf, (B, leaves); -inf for new items."""
        leaves = values.new_full((len(values), len(self.table)), -torch.inf)
        places = self.leaves.expand(len(values), -1)
        return leaves.scatter_reduce_(1, places, values.masked_fill(self.new, -torch.inf), "amax")

    def fits(self, ids: SemanticIDs, item_ids: NDArray) -> bool:
        """Whether this is the catalogue of these items and this version of their IDs."""
        same = item_ids is self.item_ids or np.array_equal(item_ids, self.item_ids)
        return same and ids.version == self.version


def codes_of(where: str, ids: SemanticIDs, item_ids: NDArray) -> NDArray[np.int64]:
    """Return the codes (N, length) of items.

    Raises:
        DataError: If an item has none.
    """
    rows = ids.rows(item_ids)
    if (missing := rows < 0).any():
        raise DataError(
            f"{where}: {missing.sum()} of {len(rows)} items of the sequences have no semantic ID; "
            f"got {item_ids[missing.argmax()].item()!r}. Add them with SemanticIDs.add."
        )
    return ids.codes[rows]


def _rows_among(known: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row of each of `codes` among distinct `known`, -1 where it is none of them."""
    table = PrefixTable(known, np.maximum(known.max(0), codes.max(0)) + 1)
    return table.rows(table.find(codes))
