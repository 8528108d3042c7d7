"""The items of a set of sequences as a trained model sees them: codes, memories, leaves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.errors import ArtifactError, DataError
from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable
from rqtoolkit.semantic_ids.ids import SemanticIDs
from rqtoolkit.semantic_ids.recommend.ranking import PrefixTree

__all__ = ["Catalogue", "check_unmoved", "codes_of", "fingerprints", "known_items"]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items in the order of `Sequences.item_ids`.

    Attributes:
        item_ids: As in the sequences, shape (N,).
        version: Of the semantic IDs, which may grow.
        codes: Shape (N, length), int64; -1 for codes beyond those of the model.
        known: Row of each item's codes among those met in training, shape (N,); -1 for others.
        leaves: Leaf of each item, counted from the table's first, shape (N,).
        table: Of all items' codes, on the device of the model; row i is item i. Codes beyond the
            model's are its last there, which matters to no score: new items get none from leaves.
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
            DataError: If an item has no semantic ID.
        """
        codes = codes_of(where, ids, item_ids)
        within = codes < codebook_sizes
        leaf_codes = np.minimum(codes, np.array(codebook_sizes) - 1)
        device = known_codes.device
        table = PrefixTable(leaf_codes, codebook_sizes)
        states = table.find(leaf_codes)
        return cls(
            item_ids=item_ids,
            version=ids.version,
            codes=torch.from_numpy(np.where(within, codes, -1)).to(device),
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


def known_items(
    where: str, codes: NDArray[np.int64], met: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the distinct codes that training meets.

    Args:
        where: Place for messages.
        codes: Of all items, shape (N, length).
        met: Rows of the items with interactions.

    Returns:
        The row of each item among the distinct codes, shape (N,), -1 where it is not met; and
        these codes, shape (M, length).

    Raises:
        DataError: If there are not two of them.
    """
    known_codes, rows = np.unique(codes[met], axis=0, return_inverse=True)
    if (count := len(known_codes)) < 2:
        raise DataError(
            f"{where}: sequences must have two semantic IDs or more; got {count}. Pass more."
        )
    known = np.full(len(codes), -1)
    known[met] = rows.reshape(-1)
    return known, known_codes


def fingerprints(item_ids: NDArray, codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number (N,) for each item and its codes (N, length), other where either is other."""
    rows = zip(item_ids.tolist(), codes.astype("<i8"), strict=True)
    digests = (
        hashlib.blake2b(repr(item).encode() + row.tobytes(), digest_size=8) for item, row in rows
    )
    return np.frombuffer(b"".join(d.digest() for d in digests), "<i8").astype(np.int64)


def check_unmoved(where: str, ids: SemanticIDs, met: NDArray[np.int64]) -> None:
    """Refuse semantic IDs in which items met in training have other codes than they had.

    Args:
        where: Place for messages.
        ids: Semantic IDs, which may have grown; items may be retired.
        met: `fingerprints` of the items met in training, shape (M,).

    Raises:
        ArtifactError: If an item moved, or is none of the items now or before.
    """
    here = fingerprints(ids.item_ids, ids.codes), fingerprints(ids.retired_ids, ids.retired_codes)
    moved = ~np.isin(met, np.concatenate(here))
    if moved.any():
        raise ArtifactError(
            f"{where} was trained on other semantic IDs; got other codes for {moved.sum()} of "
            f"{len(met)} items that it met. Train again, or use the IDs of the training: a refit "
            "moves items."
        )


def _rows_among(known: NDArray[np.int64], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row of each of `codes` among distinct `known`, -1 where it is none of them."""
    table = PrefixTable(known, np.maximum(known.max(0), codes.max(0)) + 1)
    return table.rows(table.find(codes))
