"""Interactions of users in order of time, and their leave-one-out split."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.items import RowIndex, as_item_ids, check_distinct, check_kind

__all__ = ["LeaveOneOut", "Sequences", "Split"]


@dataclass(frozen=True, eq=False)
class Sequences:
    """What each user interacted with, oldest first, as row numbers of a catalogue.

    The sequences lie end to end: user u has `items[offsets[u]:offsets[u + 1]]`. Row numbers and
    not item ids are what every recommender computes with; `item_ids[row]` is the item's id.
    `read`, `from_interactions` and `from_lists` make them.

    Attributes:
        items: Rows of `item_ids`, shape (n,), int64.
        offsets: Where users start, shape (users + 1,), int64.
        item_ids: The catalogue, shape (items,), distinct integers or strings.
        user_ids: Shape (users,).
    """

    items: NDArray[np.int64]
    offsets: NDArray[np.int64]
    item_ids: NDArray
    user_ids: NDArray

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        item_ids: ArrayLike | None = None,
        user_column: str = "user",
        item_column: str = "item",
        time_column: str | None = "timestamp",
    ) -> "Sequences":
        """Read a text file of lines `user item item …`, oldest first, or a Parquet of interactions.

        Args:
            path: A `.parquet` with one interaction a row; every other file is read as text.
            item_ids: The catalogue, whose order the row numbers take; by default the items of the
                file, sorted. Ids of a text file are integers where all of them are.
            user_column: Parquet column of users.
            item_column: Parquet column of items.
            time_column: Parquet column to sort each user's items by, equal times in the order of
                the file; None where the rows are in order already.

        Raises:
            ArtifactError: If the file is missing or unreadable.
            ConfigError: If a column is not there.
            DataError: If there are no interactions, nulls, a user on two lines, or items that are
                not in `item_ids`.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"Sequences.read: {path} is not a file. Check the path.")
        if path.suffix.lower() == ".parquet":
            names = [user_column, item_column, *([time_column] if time_column else [])]
            return cls.from_interactions(*_read_columns(path, names), item_ids=item_ids)
        try:
            lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise ArtifactError(f"Sequences.read: {path} is not UTF-8 text; got {error}.") from None
        lines = [line for line in lines if line]
        users = _integers_if_all(np.array([line[0] for line in lines], dtype=np.str_))
        items = _integers_if_all(np.array([i for line in lines for i in line[1:]], dtype=np.str_))
        if len(np.unique(users)) < len(users):
            raise DataError(f"Sequences.read: {path} has a user on two lines. Join them.")
        lengths = [len(line) - 1 for line in lines]
        return _build(f"Sequences.read: {path}", lengths, items, item_ids, users)

    @classmethod
    def from_interactions(
        cls,
        users: ArrayLike,
        items: ArrayLike,
        timestamps: ArrayLike | None = None,
        *,
        item_ids: ArrayLike | None = None,
    ) -> "Sequences":
        """Group interactions, in any order, by user.

        Args:
            users: User of each interaction, shape (n,).
            items: Its item, shape (n,).
            timestamps: Its time, shape (n,); equal times keep the order given, as do all
                interactions of a user where None.
            item_ids: The catalogue, as in `read`.

        Raises:
            ShapeError: If the three have different lengths.
            DataError: As in `read`.
        """
        where = "Sequences.from_interactions"
        users, items = np.asarray(users), as_item_ids(where, items)
        times = np.zeros(len(items), np.int64) if timestamps is None else np.asarray(timestamps)
        if not users.shape == items.shape == times.shape:
            raise ShapeError(
                f"{where}: users, items and timestamps must be of one length; got shapes "
                f"{users.shape}, {items.shape}, {times.shape}. Pass a value each."
            )
        user_ids, user = np.unique(users, return_inverse=True)
        order = np.lexsort((times, user))  # stable: equal times stay in the order given
        return _build(where, np.bincount(user), items[order], item_ids, user_ids)

    @classmethod
    def from_lists(
        cls, histories: Iterable[Iterable[Any]], *, item_ids: ArrayLike | None = None
    ) -> "Sequences":
        """Take one list of item ids a user, oldest first; users are numbered from 0.

        Args:
            histories: Item ids of each user.
            item_ids: The catalogue, as in `read`.

        Example:
            >>> Sequences.from_lists([["tea", "cup"], ["cup"]], item_ids=["cup", "tea"]).items
            array([1, 0, 0])
        """
        lists = [list(history) for history in histories]
        items = [item for history in lists for item in history]
        lengths = [len(history) for history in lists]
        return _build("Sequences.from_lists", lengths, items, item_ids, np.arange(len(lists)))

    def __len__(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> NDArray[np.int64]:
        """Rows of the items of one user, oldest first."""
        user = range(len(self))[user]
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Interactions of each user, shape (users,)."""
        return np.diff(self.offsets)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Interactions of each item, shape (items,)."""
        return np.bincount(self.items, minlength=len(self.item_ids))

    def take(self, users: slice | Sequence[int] | NDArray) -> "Sequences":
        """Return the sequences of some users: a slice, row numbers or a boolean mask."""
        rows = np.arange(len(self))[users]
        return self._cut(self.offsets[rows], self.lengths[rows], self.user_ids[rows])

    def drop_last(self, count: int) -> "Sequences":
        """Return all sequences without their last `count` items; shorter ones become empty."""
        lengths = np.maximum(self.lengths - count, 0)
        return self._cut(self.offsets[:-1], lengths, self.user_ids)

    def keep_last(self, count: int) -> "Sequences":
        """Return the last `count` items of every sequence, all of a shorter one."""
        lengths = np.minimum(self.lengths, count)
        return self._cut(self.offsets[1:] - lengths, lengths, self.user_ids)

    def padded(self, length: int, *, fill: int = -1) -> NDArray[np.int64]:
        """Return the last `length` items of every user, oldest first from column 0 on.

        Args:
            length: Columns.
            fill: Value behind the last item of shorter sequences.

        Returns:
            Shape (users, length), int64.
        """
        last = self.keep_last(length)
        table = np.full((len(self), length), fill, np.int64)
        table[np.arange(length) < last.lengths[:, None]] = last.items
        return table

    def matrix(self) -> sparse.csr_array:
        """Return how often each user met each item, shape (users, items), float32."""
        shape = (len(self), len(self.item_ids))
        ones = np.ones(len(self.items), np.float32)
        matrix = sparse.csr_array((ones, self.items.copy(), self.offsets.copy()), shape=shape)
        matrix.sum_duplicates()
        return matrix

    def leave_one_out(self) -> "LeaveOneOut":
        """Hold out the last item of every user for the test and the last but one for validation.

        Users with fewer than three interactions are trained on whole and never evaluated.
        """
        held = self.lengths >= 3
        lengths = self.lengths - 2 * held
        whole = self.take(held)
        return LeaveOneOut(
            train=self._cut(self.offsets[:-1], lengths, self.user_ids),
            validation=Split(whole.drop_last(2), whole.items[whole.offsets[1:] - 2]),
            test=Split(whole.drop_last(1), whole.items[whole.offsets[1:] - 1]),
        )

    def _cut(self, starts: NDArray, lengths: NDArray, user_ids: NDArray) -> "Sequences":
        """Return one sequence per start and length."""
        offsets = _offsets(lengths)
        places = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Sequences(self.items[places], offsets, self.item_ids, user_ids)


class Split(NamedTuple):
    """Users to evaluate: what each has done, and the row of the item each took next."""

    histories: Sequences
    targets: NDArray[np.int64]


class LeaveOneOut(NamedTuple):
    """The customary split of next-item prediction.

    The history of a test target ends with the validation target.
    """

    train: Sequences
    validation: Split
    test: Split


def _offsets(lengths: ArrayLike) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _build(
    where: str, lengths: ArrayLike, items: Any, item_ids: ArrayLike | None, user_ids: NDArray
) -> Sequences:
    items = as_item_ids(where, items)
    if item_ids is None and not len(items):
        raise DataError(f"{where}: there must be interactions; got none. Pass some, or item_ids.")
    catalogue = np.unique(items) if item_ids is None else as_item_ids(where, item_ids)
    check_distinct(where, catalogue)
    check_kind(where, items, catalogue)
    rows = RowIndex(catalogue).find(items)
    if (unknown := rows < 0).any():
        raise DataError(
            f"{where}: every item must be one of the {len(catalogue)} item_ids; got "
            f"{items[unknown][0].item()!r} and {len(np.unique(items[unknown])) - 1} others that "
            "are not. Add them, or drop their interactions."
        )
    return Sequences(rows, _offsets(lengths), catalogue, user_ids)


def _integers_if_all(words: NDArray[np.str_]) -> NDArray:
    """Return integers where that loses nothing: "007" stays a word."""
    try:
        numbers = words.astype(np.int64)
    except (ValueError, OverflowError):
        return words
    return numbers if (numbers.astype(np.str_) == words).all() else words


def _read_columns(path: Path, columns: list[str]) -> list[NDArray]:
    try:
        names = pq.read_schema(path).names
        for column in columns:
            if column not in names:
                raise ConfigError(
                    f"Sequences.read: {path} has no column {column!r}; it has {', '.join(names)}. "
                    "Name user_column, item_column and time_column (None where there is none)."
                )
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            f"Sequences.read: {path} is not a readable Parquet file; got {error}. Write it again."
        ) from error
    for column in table.column_names:
        if table[column].null_count:
            raise DataError(
                f"Sequences.read: {path}: column {column!r} holds {table[column].null_count} "
                "nulls. Drop or fill these rows."
            )
    return [table[column].to_numpy() for column in columns]
