"""The prefixes of a set of semantic IDs, as a few flat arrays that are walked in batches."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.functional.codes import smallest_dtype
from rqtoolkit.functional.devices import check_device
from rqtoolkit.semantic_ids.code_checks import check_codes, check_rows
from rqtoolkit.semantic_ids.decoding import compiled_walk, tensor_walk

__all__ = ["Array", "PrefixTable"]

Array = Any
"""A numpy array or a torch tensor, whichever the table holds."""


class PrefixTable:
    """Every prefix of a set of semantic IDs: what may follow it, and which rows it ends at.

    A trie in compressed sparse rows. Its nodes, the distinct prefixes, are numbered level by level
    and within a level in the order of their codes: 0 is the root, the children of a node have
    successive numbers, and the nodes of full length, the leaves, come last. A *state* is such a
    number, or -1 where a walk has left the table. The order of the rows does not matter, and rows
    may be equal.

    The arrays are numpy's until `to` moves them; every method takes and returns arrays of the kind
    that the table holds. On the CPU compiled loops serve both kinds, elsewhere tensor operations.

    Args:
        codes: Codes of the semantic IDs, shape (N, length), integers from 0 on, no offsets.
        codebook_sizes: Entries of each level, length numbers.

    Attributes:
        codebook_sizes: As passed.
        length: Codes of a semantic ID.
        num_rows: N: row numbers are below it, in a subset too.
        level_starts: First node of level 0 (the root), 1, …, length, and the number of nodes.
        node_codes: Last code of every node, shape (nodes,), int64; 0 for the root.
        parents: Parent of every node, shape (nodes,), int64; -1 for the root.
        offsets: First child of every node and the end of the last's, shape (nodes + 1,), int64.
        row_order: Rows sorted by their codes, equal ones by number, shape (N,), int64.
        row_offsets: Place in row_order of every leaf's first row, and N, shape (leaves + 1,).

    Raises:
        ShapeError: If codes are not (N, length).
        DataError: If codes are no integers or leave [0, codebook_size).
        ConfigError: If codebook_sizes name no level or a size below 1.

    Example:
        >>> table = PrefixTable([[3, 1], [0, 2], [3, 0]], codebook_sizes=(4, 3))
        >>> states = table.step(table.start(2), np.array([3, 1]))
        >>> table.mask(states[:1]), states[1]
        (array([[ True,  True, False]]), np.int64(-1))
    """

    def __init__(self, codes: ArrayLike, codebook_sizes: Sequence[int]) -> None:
        self.codebook_sizes = tuple(
            check_count("PrefixTable", "codebook_sizes", size) for size in codebook_sizes
        )
        self.length = len(self.codebook_sizes)
        dtype = smallest_dtype(self.codebook_sizes)  # short integers sort fastest
        codes = check_codes("PrefixTable", codes, self.codebook_sizes).astype(dtype)
        columns = np.ascontiguousarray(codes.T)
        self.num_rows = columns.shape[1]
        order = np.lexsort(columns[::-1])
        new = np.zeros(self.num_rows, bool)  # whether a sorted row has another prefix than the last
        new[:1] = True
        node_codes, parents, counts = [np.zeros(1, np.int64)], [np.full(1, -1)], [1]
        nodes = np.zeros(self.num_rows, np.int64)
        for column in columns:
            values = column[order]
            new[1:] |= values[1:] != values[:-1]
            node_codes.append(values[new].astype(np.int64))
            parents.append(nodes[new])
            nodes = np.cumsum(new) + (sum(counts) - 1)
            counts.append(len(parents[-1]))
        self._fill(
            counts,
            node_codes=np.concatenate(node_codes),
            parents=np.concatenate(parents),
            row_order=order,
            row_offsets=np.append(np.flatnonzero(new), self.num_rows),
        )

    def _fill(self, counts: Sequence[int], **arrays: NDArray[np.int64]) -> None:
        """Set everything that follows from the nodes of each level and these arrays."""
        self.level_starts = tuple(int(start) for start in np.cumsum([0, *counts]))
        children = np.bincount(arrays["parents"][1:], minlength=self.level_starts[-1])
        self._fanouts = tuple(  # children that a node of each level has at most
            int(children[start:end].max(initial=0)) for start, end in pairwise(self.level_starts)
        )
        self.node_codes: Array = arrays["node_codes"]
        self.parents: Array = arrays["parents"]
        self.offsets: Array = 1 + np.concatenate([[0], np.cumsum(children)])
        self.row_order: Array = arrays["row_order"]
        self.row_offsets: Array = arrays["row_offsets"]

    def __len__(self) -> int:
        """Return how many distinct semantic IDs the table holds."""
        return self.level_starts[-1] - self.level_starts[-2]

    def __repr__(self) -> str:
        return (
            f"PrefixTable({len(self)} semantic IDs, codebook_sizes={self.codebook_sizes}, "
            f"device={str(self.device) if self.device else 'numpy'})"
        )

    @property
    def device(self) -> torch.device | None:
        """Where the tensors are; None for numpy arrays."""
        return self.offsets.device if isinstance(self.offsets, Tensor) else None

    @property
    def on_cpu(self) -> bool:
        """Whether compiled loops do the work; elsewhere it is tensor operations."""
        return self.device is None or self.device.type == "cpu"

    def to(self, device: str | torch.device) -> Self:
        """Return the table with torch tensors on a device; "cpu" shares the memory.

        Raises:
            ConfigError: If the device is unknown or not there.
        """
        check_device("PrefixTable.to", device)
        return self._converted(lambda array: torch.as_tensor(array).to(device))

    def numpy(self) -> Self:
        """Return the table with numpy arrays."""
        return self._converted(lambda array: torch.as_tensor(array).cpu().numpy())

    def _converted(self, convert: Any) -> Self:
        other = type(self).__new__(type(self))
        for name, value in vars(self).items():
            if name != "keys":
                array = isinstance(value, Tensor | np.ndarray)
                setattr(other, name, convert(value) if array else value)
        return other

    @cached_property
    def keys(self) -> tuple[Tensor, int]:
        """Every node's `parent * size + code`, (nodes,), ascending, and that size: to search in."""
        size = max(self.codebook_sizes)
        return self.parents * size + self.node_codes, size

    def start(self, batch: int) -> Array:
        """Return the states (batch,) of empty prefixes: the root's, 0.

        Raises:
            ConfigError: If batch is no integer of at least 0.
        """
        if batch != 0:
            check_count("PrefixTable.start", "batch", batch)
        if self.device is None:
            return np.zeros(batch, np.int64)
        return torch.zeros(batch, dtype=torch.int64, device=self.device)

    def mask(self, states: Array, *, level: int | None = None, out: Array | None = None) -> Array:
        """Say which codes continue each prefix.

        Args:
            states: Shape (...), int64, all prefixes of one length.
            level: That length. None takes it from the states, for which an accelerator has to be
                waited for; 0 where all of them are -1.
            out: Where to write, shape (..., K), bool and contiguous; None makes an array.

        Returns:
            Shape (..., K) of the level's codebook size, bool; nothing continues a state of -1.

        Raises:
            DataError: If states (checked on the CPU only) are not of this one level.
            ConfigError: If there is no further code after this level.
            ShapeError: If out does not fit.
        """
        flat, shape = self._flat(states)
        level = self._check_level(flat, level)
        shape = (*shape, self.codebook_sizes[level])
        target = self._empty_mask(shape) if out is None else out
        if tuple(target.shape) != shape or not _contiguous(target):
            raise ShapeError(
                f"PrefixTable.mask: out has to be contiguous of shape {shape}; "
                f"got shape {tuple(target.shape)}."
            )
        rows = target.reshape(-1, shape[-1])
        if self.on_cpu:
            compiled_walk.fill_mask(
                _host(flat), _host(self.offsets), _host(self.node_codes), _host(rows)
            )
        else:
            fanout = self._fanouts[level]
            tensor_walk.fill_mask(flat, self.offsets, self.node_codes, rows, fanout)
        return target

    def step(self, states: Array, codes: Array) -> Array:
        """Append one code to each prefix.

        Args:
            states: Shape (...), int64, of any levels.
            codes: Shape (...), integers; any value, also out of range.

        Returns:
            Shape (...), int64; -1 where that is no prefix in the table.

        Raises:
            ShapeError: If the shapes differ.
            DataError: If a state (checked on the CPU only) is no node.
        """
        flat, shape = self._flat(states)
        wanted, wanted_shape = self._flat(codes)
        if shape != wanted_shape:
            raise ShapeError(
                f"PrefixTable.step: codes have to have the shape of states, {shape}; "
                f"got {wanted_shape}."
            )
        if not self.on_cpu:
            keys, size = self.keys
            return tensor_walk.find_children(flat, wanted, keys, size).view(shape)
        self._check_states(flat)
        offsets, node_codes = _host(self.offsets), _host(self.node_codes)
        found = compiled_walk.find_children(_host(flat), _host(wanted), offsets, node_codes)
        return self._own(found.reshape(shape))

    def find(self, prefixes: Array) -> Array:
        """Return the states (...) of prefixes (..., l), l from 0 to length; -1 for unknown ones."""
        prefixes = self._integers(prefixes)
        shape = prefixes.shape[:-1]
        states = self.start(math.prod(shape)).reshape(shape)
        for level in range(prefixes.shape[-1]):
            states = self.step(states, prefixes[..., level])
        return states

    def prefixes(self, states: Array, level: int) -> Array:
        """Return the codes (..., level) that lead to states (...) of that level; -1 for dead ones.

        A deeper state gives its last `level` codes.
        """
        states = self._integers(states)
        library = self._library
        columns = []
        for _ in range(level):
            dead, nodes = states < 0, states.clip(min=0)
            columns.append(library.where(dead, -1, self.node_codes[nodes]))
            states = library.where(dead, -1, self.parents[nodes])
        if not columns:
            return library.zeros_like(states)[..., None][..., :0]
        return library.stack(columns[::-1], -1)

    def children(self, states: Array) -> tuple[Array, Array]:
        """Return all prefixes that are one code longer.

        Args:
            states: Shape (B,), int64.

        Returns:
            Which of the states each of them continues, shape (E,), ascending, and the states of
            the longer prefixes, shape (E,); `node_codes` holds their codes.
        """
        flat, _ = self._flat(states)
        nodes = flat.clip(min=0)
        counts = (self.offsets[nodes + 1] - self.offsets[nodes]) * (flat >= 0)
        ends = counts.cumsum(0)
        which: Any
        numbers: Any
        if self.device is None:
            which = np.repeat(np.arange(len(flat)), counts)
            numbers = np.arange(len(which))
        else:
            which = torch.arange(len(flat), device=self.device).repeat_interleave(counts)
            numbers = torch.arange(len(which), device=self.device)
        return which, self.offsets[nodes][which] + numbers - (ends - counts)[which]

    def rows(self, states: Array) -> Array:
        """Return the row (...) at each leaf, the first of equal ones; -1 for other states."""
        states = self._integers(states)
        leaves = states - self.level_starts[-2]
        if not len(self):
            return states.clip(max=-1)
        found = self.row_order[self.row_offsets[leaves.clip(min=0)]]
        return self._library.where(leaves < 0, -1, found)

    def all_rows(self, state: int) -> Array:
        """Return every row at one leaf, shape (count,), ascending; none for other states."""
        leaf = int(state) - self.level_starts[-2]
        if not 0 <= leaf < len(self):
            return self.row_order[:0]
        return self.row_order[int(self.row_offsets[leaf]) : int(self.row_offsets[leaf + 1])]

    def subset(self, rows: ArrayLike) -> Self:
        """Return the table of some rows, which keep their numbers: in stock, new only.

        Takes one pass over nodes and rows: nothing is sorted.

        Args:
            rows: Row numbers in any order, or which rows to keep, shape (num_rows,), bool. Rows
                that this table does not hold, being a subset itself, stay away.

        Raises:
            DataError: If rows are neither, or out of range.
        """
        whole = self.numpy()
        kept = check_rows(rows, self.num_rows)[whole.row_order]
        row_counts = _between(kept, whole.row_offsets)
        alive = np.zeros(self.level_starts[-1], bool)
        alive[self.level_starts[-2] :] = row_counts > 0
        for level in reversed(range(self.length)):
            start, end, stop = self.level_starts[level : level + 3]
            places = whole.offsets[start : end + 1] - end
            alive[start:end] = _between(alive[end:stop], places) > 0
        alive[0] = True
        numbers = np.append(np.cumsum(alive) - 1, -1)  # the last entry is the root's parent
        other = type(self).__new__(type(self))
        other.codebook_sizes, other.length = self.codebook_sizes, self.length
        other.num_rows = self.num_rows
        other._fill(
            [int(alive[start:end].sum()) for start, end in pairwise(self.level_starts)],
            node_codes=whole.node_codes[alive],
            parents=numbers[whole.parents[alive]],
            row_order=whole.row_order[kept],
            row_offsets=np.concatenate([[0], np.cumsum(row_counts[row_counts > 0])]),
        )
        return other if self.device is None else other.to(self.device)

    def _empty_mask(self, shape: tuple[int, ...]) -> Array:
        if self.device is None:
            return np.empty(shape, bool)
        return torch.empty(shape, dtype=torch.bool, device=self.device)

    @property
    def _library(self) -> Any:
        return np if self.device is None else torch

    def _own(self, array: Any) -> Array:
        """Return an array of the kind that this table holds."""
        if self.device is None:
            return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
        return torch.as_tensor(array, device=self.device)

    def _integers(self, array: Any) -> Array:
        """Return integers of the kind that this table holds, int64."""
        array = self._own(array)
        whole = not array.is_floating_point() if self.device else array.dtype.kind in "iub"
        if not whole and math.prod(array.shape):  # empty lists are floats
            raise DataError(
                f"PrefixTable: states and codes have to be integers; got dtype {array.dtype}."
            )
        return array.astype(np.int64, copy=False) if self.device is None else array.long()

    def _flat(self, array: Any) -> tuple[Array, tuple[int, ...]]:
        """Return integers as (B,) int64, and their shape."""
        array = self._integers(array)
        return array.reshape(-1), tuple(array.shape)

    def _check_states(self, flat: Array) -> None:
        if len(flat) and int(flat.max()) >= self.level_starts[-1]:
            raise DataError(
                f"PrefixTable: states have to be below {self.level_starts[-1]}, the nodes of this "
                f"table; got {int(flat.max())}. States of one table mean nothing in another."
            )

    def _check_level(self, flat: Array, level: int | None) -> int:
        """Return the level of states (B,)."""
        if level is None:
            deepest = int(flat.max()) if len(flat) else -1
            level = max(0, bisect_right(self.level_starts, deepest) - 1)
        if not 0 <= level < self.length:
            raise ConfigError(
                f"PrefixTable.mask: no code follows level {level} of {self.length}; got complete "
                "semantic IDs, or states of another table. Ask for their `rows`."
            )
        if self.on_cpu and len(flat):
            start, end = self.level_starts[level], self.level_starts[level + 1]
            if bool(((flat >= end) | ((flat < start) & (flat >= 0))).any()):
                raise DataError(
                    f"PrefixTable.mask: states have to be of one level, here {level}, in "
                    f"[{start}, {end}) or -1; got {int(flat.min())} to {int(flat.max())}. Ask "
                    "for prefixes of each length apart."
                )
        return level


def _host(array: Array) -> NDArray[Any]:
    return array.numpy() if isinstance(array, Tensor) else array


def _contiguous(array: Array) -> bool:
    return array.is_contiguous() if isinstance(array, Tensor) else array.flags.c_contiguous


def _between(chosen: NDArray[np.bool_], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the chosen between successive bounds."""
    return np.diff(np.concatenate([[0], np.cumsum(chosen)])[bounds])
