"""Grow a catalogue: new items beside published ones, retired items, codebooks trained on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.errors import ConfigError, DataError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.io.tables import MappedTable
from rqtoolkit.semantic_ids.assignment import assign_codes, raw_codes, squared_error
from rqtoolkit.semantic_ids.building import of_codebooks
from rqtoolkit.semantic_ids.fitting import fit_quantizer, refit_quantizer
from rqtoolkit.semantic_ids.inputs import Embeddings
from rqtoolkit.semantic_ids.items import RowIndex, as_item_ids, check_kind, id_ranks
from rqtoolkit.semantic_ids.lookup import find_rows
from rqtoolkit.semantic_ids.versions import next_version

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids.ids import SemanticIDs

__all__ = ["Delta", "Stability", "add", "kept_shares", "refit", "remove"]


@dataclass(frozen=True, eq=False)
class Delta:
    """What one `add` published.

    Attributes:
        item_ids: New items in the order given, shape (M,); those known before are not among them.
        codes: Their codes, shape (M, length).
        number: Of the version that published them.
        version: Its uuid.
        parent: uuid of the version before it.
        mse: Squared error of the new items in input units, NaN where nothing was new.
        fitted_mse: As mse, of the items the codebooks were fitted for or first assigned to: how far
            mse lies above it tells when a refit is due.
    """

    item_ids: NDArray
    codes: NDArray[np.int64]
    number: int
    version: str
    parent: str | None
    mse: float
    fitted_mse: float

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True)
class Stability:
    """How much of the semantic IDs a refit left as it was.

    Attributes:
        items: Number of items that both versions have.
        kept: Share of them that keep their first code, their first two, … and the whole ID.
        old_mse: Squared error in input units of the vectors of the refit by the old codebooks,
            collisions left aside.
        new_mse: As old_mse, by the new codebooks.
    """

    items: int
    kept: tuple[float, ...]
    old_mse: float
    new_mse: float


def add(
    self: "SemanticIDs",
    embeddings: Any,
    item_ids: Any = None,
    *,
    column: str | None = None,
    id_column: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Delta:
    """Publish new items, in a new version of the object; no published ID moves.

    Items that are published already are left alone, whatever vector comes with them: adding twice
    is adding once. A retired item may come back, with new codes.

    Args:
        self: Semantic IDs.
        embeddings: As in `fit`, of the encoder that the codebooks were made for.
        item_ids: Distinct integers or strings; may be None where embeddings bring ids.
        column: As in `fit`.
        id_column: As in `fit`.
        threads: As in `fit`.
        progress: As in `fit`.

    Returns:
        The new items alone, and the error of their codes beside that of the fitted ones.

    Raises:
        ConfigError: If there are no codebooks, or no ids.
        ShapeError: If the vectors have another size, or ids and vectors differ in number.
        DataError: If vectors are not finite numbers; if ids are not distinct, or not of the kind
            that the items have; or if there are too few free codes to match.
    """
    where = "SemanticIDs.add"
    books = self.codebooks(where)
    vectors, ids = self.open(where, embeddings, item_ids, column=column, id_column=id_column)
    if ids is None:
        raise ConfigError(
            f"{where}: item_ids=None does not say which items these are. Pass one id a row."
        )
    new = np.flatnonzero(find_rows(where, self, ids) < 0)
    if not len(new):
        none = ids[:0], self.codes[:0]
        return Delta(*none, self.number, self.version, self.parent, float("nan"), self.mse)
    if len(new) < len(ids):
        ids = as_item_ids(where, ids[new])
        vectors = Embeddings(where, MappedTable(vectors.take(new)))
    taken = np.concatenate([self.codes, self.retired_codes])
    with limited_threads(threads):
        codes = assign_codes(
            *books,
            vectors,
            id_ranks(ids),
            collisions=self.collisions,
            taken=taken,
            progress=progress,
        )
        mse = squared_error(*books, vectors, codes[:, : self.depth])
    order = np.argsort(ids)
    _begin_version(self, "add", [ids[order], codes[order]])
    self.added = np.concatenate([self.added, np.full(len(codes), self.number, np.int32)])
    self.set_items(np.concatenate([self.item_ids, ids]), np.concatenate([self.codes, codes]))
    return Delta(ids, codes, self.number, self.version, self.parent, mse, self.mse)


def remove(self: "SemanticIDs", item_ids: Any) -> int:
    """Retire items, in a new version of the object; no item ever gets the codes they had.

    `refit` keeps to it with `warm_start`; without, codes mean something else, and none is retired.
    With collisions="allow", codes belong to no item, and another may have the same.

    Args:
        self: Semantic IDs.
        item_ids: Published items; those retired before are left alone.

    Returns:
        Number of items retired by this call.

    Raises:
        DataError: If an item was never published.
    """
    where = "SemanticIDs.remove"
    ids = as_item_ids(where, item_ids)
    found = find_rows(where, self, ids)
    unknown = (found < 0) & (RowIndex(self.retired_ids).find(ids) < 0)
    if unknown.any():
        raise DataError(
            f"{where}: item_ids have to be items; got {unknown.sum()} unknown, such as "
            f"{ids[np.argmax(unknown)].item()!r}. Leave them out."
        )
    gone = np.unique(found[found >= 0])
    if not len(gone):
        return 0
    retired = as_item_ids(where, self.item_ids[gone])
    _begin_version(self, "remove", [np.sort(retired)])
    self.retired_ids = np.concatenate([self.retired_ids, retired])
    self.retired_codes = np.concatenate([self.retired_codes, self.codes[gone]])
    kept = np.delete(np.arange(len(self)), gone)
    self.added = self.added[kept]
    self.set_items(self.item_ids[kept], self.codes[kept])
    return len(gone)


def refit(
    self: "SemanticIDs",
    embeddings: Any,
    item_ids: Any = None,
    *,
    warm_start: bool = True,
    codebook_size: int | Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    column: str | None = None,
    id_column: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple["SemanticIDs", Stability]:
    """Train the codebooks for the catalogue of today; this object stays as it is.

    Args:
        self: Semantic IDs.
        embeddings: All items', as in `fit`.
        item_ids: As in `fit`; the published ones in their order when None and embeddings bring
            none.
        warm_start: Go on from the codebooks there are, so that most items keep their codes; False
            repeats the fit.
        codebook_size: Entries of each level in place of those of the fit, without warm_start.
        settings: As in `fit`; those of the fit when None.
        column: As in `fit`.
        id_column: As in `fit`.
        threads: As in `fit`.
        progress: As in `fit`.

    Returns:
        A new version, whose parent is this one; and how much of the codes stayed. With warm_start,
        what was retired stays so, items left out now join them, and nobody gets their codes;
        without, nothing is retired.

    Raises:
        ConfigError: If there are no codebooks or ids; if warm_start asks what this kind of
            quantizer cannot do; if a setting is unknown.
        ShapeError: As in `add`.
        DataError: As in `add`; retired codes leave less room too.
    """
    where = "SemanticIDs.refit"
    books = self.codebooks(where)
    vectors, ids = self.open(where, embeddings, item_ids, column=column, id_column=id_column)
    if ids is None and len(vectors) != len(self):
        raise ConfigError(
            f"{where}: item_ids=None stands for the {len(self)} items published; got "
            f"{len(vectors)} rows. Pass one id a row."
        )
    ids = self.item_ids if ids is None else ids
    check_kind(where, ids, self.item_ids)
    changes: dict[str, Any] = {"codebook_size": codebook_size, "settings": settings}
    fitted_with = dict(self.fitted_with or {})
    fitted_with |= {name: value for name, value in changes.items() if value is not None}
    with limited_threads(threads):
        ranks = id_ranks(ids)
        if not warm_start:
            if self.fitted_with is None:
                raise ConfigError(
                    f"{where}: warm_start=False repeats a fit; got codebooks that were given. "
                    "Use SemanticIDs.fit."
                )
            new_books = fit_quantizer(where, vectors, ranks, **fitted_with, progress=progress)
        elif codebook_size is not None:
            raise ConfigError(
                f"{where}: codebook_size={codebook_size} makes other codebooks; got "
                "warm_start=True. Pass warm_start=False (--no-warm-start)."
            )
        else:
            new_books = refit_quantizer(
                where,
                vectors,
                ranks,
                *books,
                balance=fitted_with.get("balance"),
                settings=fitted_with.get("settings"),
                seed=fitted_with.get("seed", 0),
                progress=progress,
            )
        new = of_codebooks(
            type(self),
            *new_books,
            vectors,
            ids,
            collisions=self.collisions,
            encoder=self.encoder,
            fitted_with=fitted_with or None,
            history=(*self.history, self.version),
            retired=_retired_without(self, ids) if warm_start else None,
            progress=progress,
        )
        errors = [squared_error(*b, vectors, raw_codes(*b, vectors)) for b in (books, new_books)]
    return new, Stability(*kept_shares(self, new), *errors)


def _retired_without(old: "SemanticIDs", item_ids: NDArray) -> tuple[NDArray, NDArray[np.int64]]:
    """Return what is retired where only these items go on: their ids, and the codes they had."""
    gone = RowIndex(item_ids).find(old.item_ids) < 0
    return (
        np.concatenate([old.retired_ids, old.item_ids[gone]]),
        np.concatenate([old.retired_codes, old.codes[gone]]),
    )


def _begin_version(ids: "SemanticIDs", event: str, content: Iterable[NDArray]) -> None:
    ids.history = (*ids.history, ids.version)
    ids.version = next_version(ids.version, event, content)


def kept_shares(old: "SemanticIDs", new: "SemanticIDs") -> tuple[int, tuple[float, ...]]:
    """Compare the codes of the items that two versions share.

    Args:
        old: A version.
        new: Another.

    Returns:
        Number of these items, and the share of them whose first 1, 2, … codes are the same.
    """
    rows = old.rows(new.item_ids)
    common = rows >= 0
    length = min(old.length, new.length)
    same = old.codes[rows[common], :length] == new.codes[common, :length]
    if not len(same):
        return 0, ()
    kept = np.logical_and.accumulate(same, axis=1).mean(axis=0)
    return len(same), tuple(float(share) for share in kept)
