"""Semantic IDs of a catalogue: fitted once, then grown without moving what is published."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ConfigError, DataError
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids import building, folder, growth
from rqtoolkit.semantic_ids import lookup as lookups
from rqtoolkit.semantic_ids.assignment import decode_codes, raw_codes
from rqtoolkit.semantic_ids.building import check_dim
from rqtoolkit.semantic_ids.collisions import Collisions
from rqtoolkit.semantic_ids.inputs import Embeddings, open_embeddings
from rqtoolkit.semantic_ids.items import RowIndex
from rqtoolkit.semantic_ids.standardize import Standardization

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable
    from rqtoolkit.semantic_ids.report import Report

__all__ = ["SemanticIDs"]


class SemanticIDs:
    """Items of a catalogue with their codes, coarse to fine, and the codebooks that gave them.

    `fit` learns codebooks, `assign` takes given ones, `from_codes` has none. `add` and `remove`
    change the object and never move what is published; `refit` makes a new one. Each change makes
    a new version, whose uuid follows from the one before and from what changed alone.

    Attributes:
        item_ids: Published items in the order they came, shape (N,), int64 or strings.
        codes: Their codes, shape (N, length), int64; length is depth, and one more where
            collisions is "token".
        added: Number of the version that published each, shape (N,), int32.
        retired_ids: Items removed, shape (R,).
        retired_codes: The codes they had, which no item gets again, shape (R, length). A refit
            without warm_start starts anew.
        quantizer: Of standardised vectors; None of codes made elsewhere.
        standardization: What it was fitted with; None as well.
        depth: Levels of the codebooks.
        collisions: "match", "token" or "allow".
        version: uuid.
        history: uuids of the versions before, oldest first.
        encoder: Name of the model that made the embeddings, if told.
        fitted_with: Arguments of `fit`; None where codebooks were given.
        mse: Squared error of the items fitted or assigned, not of those added, in input units:
            summed over dim, averaged over items. NaN without codebooks.

    Example:
        >>> ids = SemanticIDs.fit(embeddings, item_ids)
        >>> ids["B0002Z8QS4"]
        array([ 12,   7, 201])
        >>> delta = ids.add(new_embeddings, new_ids)
        >>> ids.save("catalogue")

    References:
        Rajput et al., "Recommender Systems with Generative Retrieval", NeurIPS 2023.
        https://arxiv.org/abs/2305.05065
    """

    def __init__(
        self,
        *,
        item_ids: NDArray,
        codes: NDArray[np.int64],
        level_sizes: Sequence[int],
        collisions: Collisions,
        quantizer: Quantizer | None,
        standardization: Standardization | None,
        added: NDArray[np.int32],
        retired_ids: NDArray,
        retired_codes: NDArray[np.int64],
        version: str,
        history: tuple[str, ...],
        encoder: str | None,
        fitted_with: Mapping[str, Any] | None,
        mse: float,
    ) -> None:
        self.quantizer, self.standardization = quantizer, standardization
        self.level_sizes = tuple(int(size) for size in level_sizes)
        self.depth = len(self.level_sizes)
        self.collisions = collisions
        self.added = added
        self.retired_ids, self.retired_codes = retired_ids, retired_codes
        self.version, self.history = version, history
        self.encoder, self.fitted_with, self.mse = encoder, fitted_with, mse
        self.set_items(item_ids, codes)

    fit = classmethod(building.fit)
    assign = classmethod(building.assign)
    from_codes = classmethod(building.from_codes)
    add = growth.add
    remove = growth.remove
    refit = growth.refit
    rows = lookups.rows
    lookup = lookups.lookup
    items_of = lookups.items_of
    save = folder.save
    load = classmethod(folder.load)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.item_ids)

    def __contains__(self, item_id: Any) -> bool:
        try:
            return bool(self.rows([item_id])[0] >= 0)
        except DataError:  # of a kind that no item has
            return False

    def __getitem__(self, item_id: Any) -> NDArray[np.int64]:
        """Return the codes of one item, shape (length,).

        Raises:
            KeyError: If it is not published.
        """
        codes = self.get(item_id)
        if codes is None:
            raise KeyError(item_id)
        return codes

    def get(self, item_id: Any, default: Any = None) -> Any:
        """Return the codes of one item, shape (length,), or `default` if it is not published."""
        return self.codes[self.rows([item_id])[0]] if item_id in self else default

    def __repr__(self) -> str:
        return (
            f"SemanticIDs({len(self)} items, codebook_sizes={self.codebook_sizes}, "
            f"collisions={self.collisions!r}, number={self.number})"
        )

    @property
    def length(self) -> int:
        """Codes of an item."""
        return self.codes.shape[1]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Entries of each level, one number a code; of a counter its largest value and one."""
        if self.length == self.depth:
            return self.level_sizes
        given = (self.codes[:, -1], self.retired_codes[:, -1])
        return (*self.level_sizes, 1 + max(int(counters.max(initial=0)) for counters in given))

    @property
    def dim(self) -> int | None:
        """Size of the embeddings; None without codebooks."""
        return None if self.standardization is None else self.standardization.dim

    @property
    def parent(self) -> str | None:
        """uuid of the version before this one."""
        return self.history[-1] if self.history else None

    @property
    def number(self) -> int:
        """How many versions came before this one."""
        return len(self.history)

    def encode(
        self, embeddings: Any, *, column: str | None = None, threads: int | None = None
    ) -> NDArray[np.int64]:
        """Encode any vectors, whatever codes items have.

        Args:
            embeddings: As in `fit`.
            column: Column of vectors, in Parquet and data frames.
            threads: Threads to use; as many as torch does when None.

        Returns:
            Codes, shape (M, depth); several vectors may have the same.

        Raises:
            ConfigError: If there are no codebooks.
            ShapeError: If the vectors have another size.
            DataError: If they are not finite numbers.
        """
        books = self.codebooks("SemanticIDs.encode")
        vectors, _ = self.open("SemanticIDs.encode", embeddings, column=column)
        with limited_threads(threads):
            return raw_codes(*books, vectors)

    def decode(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Return the vectors that codes stand for, in the units of the embeddings.

        Args:
            codes: Shape (..., d), d from 1 to `length`; counters say nothing and are left out.

        Returns:
            Shape (..., dim).

        Raises:
            ConfigError: If there are no codebooks.
            ShapeError: If d is more than that.
            DataError: If a code is no integer or out of range.
        """
        books = self.codebooks("SemanticIDs.decode")
        table = np.array(codes)  # torch minds arrays that cannot be written to
        if table.ndim and table.shape[-1] == self.length:
            table = table[..., : self.depth]
        return decode_codes(*books, table)

    def report(
        self,
        embeddings: Any = None,
        item_ids: Any = None,
        *,
        groups: Any = None,
        against: "SemanticIDs | None" = None,
        column: str | None = None,
        id_column: str | None = None,
        seed: int = 0,
    ) -> "Report":
        """Measure the codes; see `semantic_ids.report.make_report`."""
        from rqtoolkit.semantic_ids.report import make_report

        return make_report(
            self,
            embeddings,
            item_ids=item_ids,
            groups=groups,
            against=against,
            column=column,
            id_column=id_column,
            seed=seed,
        )

    def prefix_table(self, item_ids: Any = None) -> "PrefixTable":
        """Return a table of all prefixes for constrained decoding; its rows are rows of `codes`.

        Args:
            item_ids: Items that may be generated; all when None.

        Raises:
            DataError: If an item is unknown.
        """
        from rqtoolkit.semantic_ids.decoding import PrefixTable

        table = PrefixTable(self.codes, self.codebook_sizes)
        if item_ids is None:
            return table
        where = "SemanticIDs.prefix_table"
        return table.subset(lookups.find_rows(where, self, item_ids, errors="raise"))

    def tokens(self, style: str = "<{level}_{code}>") -> list[str]:
        """Return each item's codes as a string of tokens; see `semantic_ids.tokens`."""
        from rqtoolkit.semantic_ids.tokens import format_tokens

        return format_tokens(self.codes, style)

    def prefix_ngrams(
        self, n: int | None = None, *, table_size: int | None = None, seed: int = 0
    ) -> NDArray[np.int64]:
        """Return features for ranking models; see `semantic_ids.ngrams.prefix_ngrams`."""
        from rqtoolkit.semantic_ids.ngrams import prefix_ngrams

        return prefix_ngrams(self.codes, self.codebook_sizes, n, table_size=table_size, seed=seed)

    def set_items(self, item_ids: NDArray, codes: NDArray[np.int64]) -> None:
        """Replace what is published; `add` and `remove` do, which see to all else."""
        self.item_ids, self.codes = item_ids, codes
        self.indexes: dict[str, RowIndex] = {}

    def codebooks(self, where: str) -> tuple[Quantizer, Standardization]:
        """Return quantizer and standardisation, or refuse for want of them."""
        if self.quantizer is None or self.standardization is None:
            raise ConfigError(
                f"{where}: there are no codebooks; got codes made elsewhere. Use "
                "SemanticIDs.assign with the quantizer that made them, or SemanticIDs.fit."
            )
        return self.quantizer, self.standardization

    def open(
        self, where: str, embeddings: Any, item_ids: Any = None, **columns: Any
    ) -> tuple[Embeddings, NDArray | None]:
        """Open embeddings that have to fit the codebooks."""
        vectors, found = open_embeddings(where, embeddings, item_ids, **columns)
        check_dim(where, vectors, self.dim)
        return vectors, found
