"""Semantic IDs of a catalogue: fitted once, then grown without moving what is published."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids import folder, growth
from rqtoolkit.semantic_ids import lookup as lookups
from rqtoolkit.semantic_ids.assignment import assign_codes, decode_codes, raw_codes, squared_error
from rqtoolkit.semantic_ids.collisions import Collisions
from rqtoolkit.semantic_ids.fitting import fit_quantizer
from rqtoolkit.semantic_ids.inputs import Embeddings, open_embeddings
from rqtoolkit.semantic_ids.items import (
    RowIndex,
    as_item_ids,
    check_codes,
    check_distinct,
    code_keys,
    id_ranks,
)
from rqtoolkit.semantic_ids.standardize import Standardization
from rqtoolkit.semantic_ids.versions import fingerprint, next_version

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
        retired_codes: The codes they had, which no item gets again, shape (R, length).
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

    @classmethod
    def fit(
        cls,
        embeddings: Any,
        item_ids: Any = None,
        *,
        depth: int = 3,
        codebook_size: int | Sequence[int] = 256,
        method: Literal["residual", "rqvae", "neural"] = "residual",
        collisions: Collisions = "match",
        balance: float | None = None,
        scale_columns: bool = False,
        settings: Mapping[str, Any] | None = None,
        encoder: str | None = None,
        column: str | None = None,
        id_column: str | None = None,
        threads: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> "SemanticIDs":
        """Learn codebooks and give every item codes.

        The order of rows changes nothing but the order of `item_ids` and `codes`.

        Args:
            embeddings: One vector an item: (N, dim) array, memory map or tensor; DataFrame or
                Series, whose index gives the ids; path to .npy, .npz, .fvecs, .bvecs or Parquet.
            item_ids: Distinct integers or strings, shape (N,); the rows' numbers when None and
                embeddings bring none.
            depth: Codes an item.
            codebook_size: Entries of each level, or one number a level. With fewer items than
                that, the codebook shrinks to their number, with a warning.
            method: "residual" for residual k-means with joint least squares, "rqvae" for an
                autoencoder around a residual quantizer, "neural" for codebooks that networks
                compute.
            collisions: "match" gives each item codes of its own; "token" adds one more code that
                counts items of equal codes from 0; "allow" leaves them equal.
            balance: Let no first-level code have more than this times the even share of items.
            scale_columns: Scale each column of the embeddings to one spread. It suits columns in
                different units; otherwise it costs error.
            settings: Arguments of the quantizer and of its `fit`, by name.
            encoder: Name of the model that made the embeddings; `load` can ask for it.
            column: Column of vectors, in Parquet and data frames.
            id_column: Column of ids, in Parquet and data frames.
            threads: Threads to use; as many as torch does when None.
            seed: Fixes the result.
            progress: Told of each stretch of work.

        Raises:
            ShapeError: If embeddings are not (N, dim), or item_ids not as many.
            DataError: If embeddings are not finite numbers, item_ids not distinct integers or
                strings, or codes too few to match.
            ConfigError: If an argument is unknown or out of range.
            ArtifactError: If a file is missing or unreadable.
        """
        where = "SemanticIDs.fit"
        _check_collisions(where, collisions)
        vectors, found = open_embeddings(
            where, embeddings, item_ids, column=column, id_column=id_column
        )
        ids = np.arange(len(vectors)) if found is None else found
        fitted_with = {
            "method": method,
            "depth": depth,
            "codebook_size": codebook_size if isinstance(codebook_size, int) else [*codebook_size],
            "balance": balance,
            "scale_columns": scale_columns,
            "settings": dict(settings or {}),
            "seed": seed,
        }
        with limited_threads(threads):
            quantizer, standardization = fit_quantizer(
                where, vectors, id_ranks(ids), **fitted_with, progress=progress
            )
            return cls.of_codebooks(
                quantizer,
                standardization,
                vectors,
                ids,
                collisions=collisions,
                encoder=encoder,
                fitted_with=fitted_with,
                progress=progress,
            )

    @classmethod
    def assign(
        cls,
        quantizer: Quantizer,
        embeddings: Any,
        item_ids: Any = None,
        *,
        standardization: Standardization | None = None,
        collisions: Collisions = "match",
        encoder: str | None = None,
        column: str | None = None,
        id_column: str | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> "SemanticIDs":
        """Give every item codes by codebooks that are there already.

        Args:
            quantizer: Fitted.
            embeddings: As in `fit`.
            item_ids: As in `fit`.
            standardization: What the quantizer was fitted with; None of one fitted to the
                embeddings as they are.
            collisions: As in `fit`.
            encoder: As in `fit`.
            column: As in `fit`.
            id_column: As in `fit`.
            threads: As in `fit`.
            progress: As in `fit`.

        Raises:
            ShapeError: If embeddings are not (N, dim) with the quantizer's dim; else as in `fit`.
            DataError: As in `fit`.
            ConfigError: As in `fit`.
        """
        where = "SemanticIDs.assign"
        _check_collisions(where, collisions)
        vectors, found = open_embeddings(
            where, embeddings, item_ids, column=column, id_column=id_column
        )
        _check_dim(where, vectors, quantizer.dim)
        with limited_threads(threads):
            return cls.of_codebooks(
                quantizer,
                standardization or Standardization.identity(quantizer.dim),
                vectors,
                np.arange(len(vectors)) if found is None else found,
                collisions=collisions,
                encoder=encoder,
                progress=progress,
            )

    @classmethod
    def from_codes(
        cls,
        codes: ArrayLike,
        item_ids: Any = None,
        *,
        codebook_sizes: Sequence[int] | None = None,
        collisions: Collisions = "allow",
        encoder: str | None = None,
    ) -> "SemanticIDs":
        """Take codes made elsewhere: everything but encoding works without codebooks.

        Args:
            codes: Shape (N, length), integers from 0, coarse to fine.
            item_ids: As in `fit`.
            codebook_sizes: Entries of each level; the largest code and one when None.
            collisions: How they were made: of "token", the last code is a counter.
            encoder: As in `fit`.

        Raises:
            ShapeError: If codes are not (N, length), or item_ids or codebook_sizes not as many.
            DataError: If codes are no integers or out of range, or item_ids not distinct integers
                or strings; or if codes repeat where collisions does not allow it.
        """
        where = "SemanticIDs.from_codes"
        _check_collisions(where, collisions)
        table = check_codes(where, codes, codebook_sizes)
        ids = np.arange(len(table)) if item_ids is None else as_item_ids(where, item_ids)
        if len(ids) != len(table):
            raise ShapeError(f"{where}: codes has {len(table)} rows; got {len(ids)} item_ids.")
        check_distinct(where, ids)
        sizes = table.max(axis=0) + 1 if codebook_sizes is None else codebook_sizes
        if collisions != "allow" and len(np.unique(code_keys(table, sizes))) < len(table):
            raise DataError(
                f"{where}: codes have to differ with collisions={collisions!r}; got some twice. "
                "Pass collisions='allow'."
            )
        return cls._first(
            ids,
            table,
            level_sizes=sizes[: len(sizes) - (collisions == "token")],
            collisions=collisions,
            encoder=encoder,
        )

    @classmethod
    def of_codebooks(
        cls,
        quantizer: Quantizer,
        standardization: Standardization,
        vectors: Embeddings,
        item_ids: NDArray,
        *,
        collisions: Collisions,
        encoder: str | None,
        fitted_with: Mapping[str, Any] | None = None,
        history: tuple[str, ...] = (),
        progress: Progress | None = None,
    ) -> "SemanticIDs":
        """Give checked items codes by checked codebooks; what `fit`, `assign` and `refit` share."""
        books = quantizer, standardization
        ranks = id_ranks(item_ids)
        codes = assign_codes(*books, vectors, ranks, collisions=collisions, progress=progress)
        return cls._first(
            item_ids,
            codes,
            level_sizes=quantizer.codebook_sizes,
            collisions=collisions,
            books=books,
            history=history,
            encoder=encoder,
            fitted_with=fitted_with,
            mse=squared_error(*books, vectors, codes[:, : len(quantizer.codebook_sizes)]),
        )

    @classmethod
    def _first(
        cls,
        item_ids: NDArray,
        codes: NDArray[np.int64],
        *,
        level_sizes: Sequence[int],
        collisions: Collisions,
        encoder: str | None,
        books: tuple[Quantizer, Standardization] | None = None,
        history: tuple[str, ...] = (),
        fitted_with: Mapping[str, Any] | None = None,
        mse: float = float("nan"),
    ) -> "SemanticIDs":
        """Return a version in which no item is older than the others."""
        order = np.argsort(item_ids)
        content = [item_ids[order], codes[order], *([fingerprint(*books)] if books else [])]
        return cls(
            item_ids=item_ids,
            codes=codes,
            level_sizes=level_sizes,
            collisions=collisions,
            quantizer=books[0] if books else None,
            standardization=books[1] if books else None,
            added=np.full(len(item_ids), len(history), np.int32),
            retired_ids=item_ids[:0],
            retired_codes=codes[:0],
            version=next_version(history[-1] if history else None, "codes", content),
            history=history,
            encoder=encoder,
            fitted_with=fitted_with,
            mse=mse,
        )

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
        return bool(self.rows([item_id])[0] >= 0)

    def __getitem__(self, item_id: Any) -> NDArray[np.int64]:
        """Return the codes of one item, shape (length,).

        Raises:
            KeyError: If it is not published.
        """
        row = int(self.rows([item_id])[0])
        if row < 0:
            raise KeyError(item_id)
        return self.codes[row]

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
        table = np.asarray(codes)
        if table.ndim and table.shape[-1] == self.length:
            table = table[..., : self.depth]
        return decode_codes(*books, table)

    def report(self, embeddings: Any = None, groups: Any = None, against: Any = None) -> "Report":
        """Measure the codes; see `semantic_ids.report.make_report`."""
        from rqtoolkit.semantic_ids.report import make_report

        return make_report(self, embeddings, groups=groups, against=against)

    def prefix_table(self, item_ids: Any = None) -> "PrefixTable":
        """Return a table of all prefixes for constrained decoding; its rows are rows of `codes`.

        Args:
            item_ids: Items that may be generated; all when None.

        Raises:
            DataError: If an item is unknown.
        """
        from rqtoolkit.semantic_ids.decoding import PrefixTable

        table = PrefixTable(self.codes, self.codebook_sizes)
        return table if item_ids is None else table.subset(self.rows(item_ids, errors="raise"))

    def tokens(self, style: str = "<{level}_{code}>") -> list[str]:
        """Return each item's codes as a string of tokens; see `semantic_ids.tokens`."""
        from rqtoolkit.semantic_ids.tokens import format_tokens

        return format_tokens(self.codes, style)

    def prefix_ngrams(self, *args: Any, **options: Any) -> NDArray[np.int64]:
        """Return features for ranking models; see `semantic_ids.ngrams.prefix_ngrams`."""
        from rqtoolkit.semantic_ids.ngrams import prefix_ngrams

        return prefix_ngrams(self.codes, *args, **options)

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
        _check_dim(where, vectors, self.dim)
        return vectors, found


def _check_collisions(where: str, collisions: str) -> None:
    if collisions not in get_args(Collisions):
        raise ConfigError(
            f"{where}: collisions={collisions!r} is unknown. "
            f"Choose one of {', '.join(get_args(Collisions))}."
        )


def _check_dim(where: str, vectors: Embeddings, dim: int | None) -> None:
    if vectors.dim != dim:
        raise ShapeError(
            f"{where}: embeddings have to have shape (N, {dim}) as the codebooks; got "
            f"({vectors.rows}, {vectors.dim}). Use the encoder that these codebooks were made for."
        )
