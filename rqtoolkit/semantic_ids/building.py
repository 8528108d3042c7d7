"""Make semantic IDs: with codebooks learnt here, with given ones, or of codes made elsewhere."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import (
    check_count,
    check_number,
    check_seed,
    check_sizes,
    shown,
)
from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.semantic_ids.assignment import assign_codes, squared_error
from rqtoolkit.semantic_ids.collisions import Collisions
from rqtoolkit.semantic_ids.fitting import fit_quantizer
from rqtoolkit.semantic_ids.inputs import Embeddings, open_embeddings
from rqtoolkit.semantic_ids.items import (
    as_item_ids,
    check_codes,
    check_distinct,
    id_ranks,
)
from rqtoolkit.semantic_ids.stacks import stack_numbers
from rqtoolkit.semantic_ids.standardize import Standardization
from rqtoolkit.semantic_ids.versions import fingerprint, next_version

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids.ids import SemanticIDs

__all__ = ["assign", "check_dim", "fit", "from_codes", "of_codebooks"]

_MANY_LEVELS = 16  # beyond which codes are more likely the wrong way round


def fit(
    cls: type["SemanticIDs"],
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
        cls: The class.
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
        balance: Let no first-level code have more than this times the even share of items, with
            a warning where equal vectors, or too few codes to match them all, stand against it.
            Items added later meet the same prices, but no limit.
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
        DataError: If embeddings are not finite numbers, or item_ids not distinct integers or
            strings.
        ConfigError: If an argument is unknown or out of range, or codes are too few to match.
        ArtifactError: If a file is missing or unreadable.
    """
    where = "SemanticIDs.fit"
    _check_words(where, collisions, encoder)
    if not isinstance(scale_columns, bool | np.bool_):
        raise ConfigError(f"{where}: scale_columns={shown(scale_columns)} must be True or False.")
    vectors, found = open_embeddings(
        where, embeddings, item_ids, column=column, id_column=id_column
    )
    ids = np.arange(len(vectors)) if found is None else found
    sizes = check_sizes(where, codebook_size, check_count(where, "depth", depth))
    if collisions == "match":
        _check_room(where, len(vectors), sizes)
    fitted_with: dict[str, Any] = {
        "method": method,
        "depth": len(sizes),
        "codebook_size": list(sizes) if isinstance(codebook_size, Sequence) else sizes[0],
        "balance": None if balance is None else check_number(where, "balance", balance, least=1),
        "scale_columns": bool(scale_columns),
        "settings": _plain(where, {} if settings is None else settings),
        "seed": check_seed(where, seed),
    }
    with limited_threads(threads):
        quantizer, standardization = fit_quantizer(
            where, vectors, id_ranks(ids), **fitted_with, progress=progress
        )
        return of_codebooks(
            cls,
            quantizer,
            standardization,
            vectors,
            ids,
            collisions=collisions,
            encoder=encoder,
            fitted_with=fitted_with,
            progress=progress,
        )


def assign(
    cls: type["SemanticIDs"],
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
        cls: The class.
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
        DataError: As in `fit`, or if codes are too few to match.
        ConfigError: If collisions is unknown, or threads out of range.
    """
    where = "SemanticIDs.assign"
    _check_words(where, collisions, encoder)
    vectors, found = open_embeddings(
        where, embeddings, item_ids, column=column, id_column=id_column
    )
    check_dim(where, vectors, quantizer.dim)
    with limited_threads(threads):
        return of_codebooks(
            cls,
            quantizer,
            standardization or Standardization.identity(quantizer.dim),
            vectors,
            np.arange(len(vectors)) if found is None else found,
            collisions=collisions,
            encoder=encoder,
            progress=progress,
        )


def from_codes(
    cls: type["SemanticIDs"],
    codes: ArrayLike,
    item_ids: Any = None,
    *,
    codebook_sizes: Sequence[int] | None = None,
    collisions: Collisions = "allow",
    encoder: str | None = None,
) -> "SemanticIDs":
    """Take codes made elsewhere: everything but encoding works without codebooks.

    Args:
        cls: The class.
        codes: Shape (N, length), integers from 0, coarse to fine.
        item_ids: As in `fit`.
        codebook_sizes: Entries of each level; the largest code and one when None.
        collisions: How they were made: of "token", the last code is a counter.
        encoder: As in `fit`.

    Raises:
        ShapeError: If codes are not (N, length), or item_ids or codebook_sizes not as many.
        DataError: If codes are no integers or out of range, or item_ids not distinct integers
            or strings; or if codes repeat where collisions does not allow it.
        ConfigError: If collisions or encoder is none.

    Warns:
        UserWarning: If each of few items has a great many codes, as in a table (length, N).
    """
    where = "SemanticIDs.from_codes"
    _check_words(where, collisions, encoder)
    table = check_codes(where, codes, codebook_sizes)
    ids = np.arange(len(table)) if item_ids is None else as_item_ids(where, item_ids)
    if len(ids) != len(table):
        raise ShapeError(f"{where}: codes has {len(table)} rows; got {len(ids)} item_ids.")
    check_distinct(where, ids)
    if table.shape[1] > max(_MANY_LEVELS, len(table)):
        warnings.warn(
            f"{where}: codes has to have shape (N, length); got {table.shape}, {len(table)} items "
            f"of {table.shape[1]} codes. Pass codes.T if that is the wrong way round.",
            UserWarning,
            stacklevel=2,
        )
    sizes = table.max(axis=0) + 1 if codebook_sizes is None else codebook_sizes
    if collisions != "allow" and len(np.unique(stack_numbers(table, sizes))) < len(table):
        raise DataError(
            f"{where}: codes have to differ with collisions={collisions!r}; got some twice. "
            "Pass collisions='allow'."
        )
    return _first(
        cls,
        ids,
        table,
        level_sizes=sizes[: len(sizes) - (collisions == "token")],
        collisions=collisions,
        encoder=encoder,
    )


def of_codebooks(
    cls: type["SemanticIDs"],
    quantizer: Quantizer,
    standardization: Standardization,
    vectors: Embeddings,
    item_ids: NDArray,
    *,
    collisions: Collisions,
    encoder: str | None,
    fitted_with: Mapping[str, Any] | None = None,
    history: tuple[str, ...] = (),
    retired: tuple[NDArray, NDArray[np.int64]] | None = None,
    progress: Progress | None = None,
) -> "SemanticIDs":
    """Give checked items codes by checked codebooks; what `fit`, `assign` and `refit` share.

    Of those retired, item ids and codes, no item gets the codes again.
    """
    books = quantizer, standardization
    ranks = id_ranks(item_ids)
    balance = (fitted_with or {}).get("balance")
    share = len(item_ids) / quantizer.codebook_sizes[0]
    limit = None if balance is None else max(int(balance * share), math.ceil(share))
    codes = assign_codes(
        *books,
        vectors,
        ranks,
        collisions=collisions,
        taken=None if retired is None else retired[1],
        limit=limit,
        progress=progress,
    )
    if limit is not None and collisions == "match":
        _warn_beyond(limit, codes)
    return _first(
        cls,
        item_ids,
        codes,
        level_sizes=quantizer.codebook_sizes,
        collisions=collisions,
        books=books,
        history=history,
        retired=retired,
        encoder=encoder,
        fitted_with=fitted_with,
        mse=squared_error(*books, vectors, codes[:, : len(quantizer.codebook_sizes)]),
    )


def _first(
    cls: type["SemanticIDs"],
    item_ids: NDArray,
    codes: NDArray[np.int64],
    *,
    level_sizes: Sequence[int],
    collisions: Collisions,
    encoder: str | None,
    books: tuple[Quantizer, Standardization] | None = None,
    history: tuple[str, ...] = (),
    retired: tuple[NDArray, NDArray[np.int64]] | None = None,
    fitted_with: Mapping[str, Any] | None = None,
    mse: float = float("nan"),
) -> "SemanticIDs":
    """Return a version in which no item is older than the others."""
    order = np.argsort(item_ids)
    content: list[bytes | NDArray] = [item_ids[order], codes[order]]
    content += [fingerprint(*books)] if books else []
    return cls(
        item_ids=item_ids,
        codes=codes,
        level_sizes=level_sizes,
        collisions=collisions,
        quantizer=books[0] if books else None,
        standardization=books[1] if books else None,
        added=np.full(len(item_ids), len(history), np.int32),
        retired_ids=item_ids[:0] if retired is None else retired[0],
        retired_codes=codes[:0] if retired is None else retired[1],
        version=next_version(history[-1] if history else None, "codes", content),
        history=history,
        encoder=encoder,
        fitted_with=fitted_with,
        mse=mse,
    )


def _plain(where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back, for the manifest."""
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"{where}: settings={shown(settings)} has to map names to values, as in "
            "{'rounds': 2}."
        )
    try:
        return json.loads(json.dumps(dict(settings), default=lambda number: number.item()))
    except (TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where}: settings={dict(settings)!r} have to be numbers, strings, lists or None, "
            "which a manifest can hold. Convert them."
        ) from error


def _check_words(where: str, collisions: str, encoder: str | None) -> None:
    if encoder is not None and not isinstance(encoder, str):
        raise ConfigError(f"{where}: encoder={shown(encoder)} must be a name, or None.")
    if collisions not in get_args(Collisions):
        raise ConfigError(
            f"{where}: collisions={shown(collisions)} is unknown. "
            f"Choose one of {', '.join(get_args(Collisions))}."
        )


def _check_room(where: str, items: int, codebook_sizes: Sequence[int]) -> None:
    """Refuse, before any work, more items than there are codes to match."""
    if items > math.prod(codebook_sizes):
        raise ConfigError(
            f"{where}: codebook_size={codebook_sizes} makes {math.prod(codebook_sizes)} codes, too "
            f"few for collisions='match'; got {items} items. Raise codebook_size or depth, or "
            "choose collisions='token'."
        )


def _warn_beyond(limit: int, codes: NDArray[np.int64]) -> None:
    """Say where codes that are free have not allowed for balance."""
    largest = int(np.bincount(codes[:, 0]).max())
    if largest > limit:
        warnings.warn(
            f"SemanticIDs: balance allows first codes of {limit} items; got one of {largest} once "
            "all have codes of their own. Raise balance, codebook_size or depth.",
            UserWarning,
            stacklevel=4,
        )


def check_dim(where: str, vectors: Embeddings, dim: int | None) -> None:
    """Refuse vectors of another size than the codebooks have.

    Raises:
        ShapeError: If they are.
    """
    if vectors.dim != dim:
        raise ShapeError(
            f"{where}: embeddings have to have shape (N, {dim}) as the codebooks; got "
            f"({vectors.rows}, {vectors.dim}). Use the encoder that these codebooks were made for."
        )
