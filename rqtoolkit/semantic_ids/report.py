"""How good are these semantic IDs? Figures to read before a recommender is trained on them."""

import dataclasses
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rqtoolkit.errors import ConfigError, ShapeError
from rqtoolkit.functional.arguments import check_seed
from rqtoolkit.io.atomic import atomic_path
from rqtoolkit.semantic_ids.drift import Drift, measure_drift
from rqtoolkit.semantic_ids.embedding_figures import EmbeddingFigures, embedding_figures
from rqtoolkit.semantic_ids.figures import (
    LevelFigures,
    PrefixFigures,
    level_figures,
    prefix_figures,
    prefix_groups,
)
from rqtoolkit.semantic_ids.inputs import Embeddings, open_embeddings
from rqtoolkit.semantic_ids.items import RowIndex, as_item_ids, check_distinct, check_kind
from rqtoolkit.semantic_ids.purity import GroupFigures, group_figures
from rqtoolkit.semantic_ids.report_tables import as_rich, report_tables

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rqtoolkit.semantic_ids.ids import SemanticIDs

__all__ = ["Report", "make_report"]

_WHERE = "SemanticIDs.report"
_CHUNK_ROWS = 2**14  # decoded and summed in float64 at once


@dataclass(frozen=True)
class Report:
    """Figures of one version of semantic IDs.

    Attributes:
        version: uuid of the version.
        number: Its number.
        items: Published items.
        depth: Levels of the quantizer; one code more where a counter tells items apart.
        collisions: How collisions were met: "match", "token" or "allow".
        levels: Use of the codes, one a level.
        prefixes: Buckets of the first 1, 2, … codes; the last are those of whole IDs.
        embeddings: Distortion and cohesion; None without embeddings.
        groups: Purity; None without groups.
        drift: What changed since another version; None without one.
    """

    version: str
    number: int
    items: int
    depth: int
    collisions: str
    levels: tuple[LevelFigures, ...]
    prefixes: tuple[PrefixFigures, ...]
    embeddings: EmbeddingFigures | None = None
    groups: GroupFigures | None = None
    drift: Drift | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return tuple(level.codebook_size for level in self.levels)

    @property
    def duplicate_rate(self) -> float:
        """1 − distinct IDs / items: what others call collision rate, or one minus uniqueness."""
        return self.prefixes[-1].duplicate_rate

    @property
    def shared_rate(self) -> float:
        """Share of items whose ID another item has as well: the other collision rate."""
        return self.prefixes[-1].shared_rate

    @property
    def largest_bucket(self) -> int:
        """Most items that share one ID."""
        return self.prefixes[-1].largest

    @property
    def gini(self) -> float:
        """Inequality of the numbers of items per ID: 0 where all have equally many."""
        return self.prefixes[-1].gini

    def to_dict(self) -> dict[str, Any]:
        """Return all figures in dictionaries and lists; counts of single codes are left out."""
        figures = dataclasses.asdict(self)
        for level in figures["levels"]:
            del level["counts"]
        names = ("codebook_sizes", "duplicate_rate", "shared_rate", "largest_bucket", "gini")
        return {**{name: getattr(self, name) for name in names}, **figures}

    def to_json(self) -> str:
        """Return `to_dict` as JSON; infinite and undefined numbers become null."""
        return json.dumps(_finite(self.to_dict()), indent=2)

    def table(self) -> "RenderableType":
        """Return tables that rich prints: `rich.print(report.table())`."""
        return as_rich(report_tables(self))

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=200, highlight=False, color_system=None).print(self.table())
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def to_html(self, path: str | Path, *, title: str = "Semantic IDs") -> None:
        """Write one page with all figures and plots, which loads nothing and can be sent on.

        Args:
            path: File to write.
            title: Heading.

        Raises:
            ArtifactError: If the folder is missing.
        """
        from rqtoolkit.semantic_ids.report_page import render_page

        with atomic_path(path) as temporary:
            temporary.write_text(render_page(self, title=title), encoding="utf-8")


def make_report(
    ids: "SemanticIDs",
    embeddings: Any = None,
    *,
    item_ids: Any = None,
    groups: Any = None,
    against: "SemanticIDs | None" = None,
    column: str | None = None,
    id_column: str | None = None,
    seed: int = 0,
) -> Report:
    """Measure semantic IDs.

    Args:
        ids: The IDs.
        embeddings: What they were made of, as `SemanticIDs.fit` takes it: rows in the order of
            `ids.item_ids`, or with item ids in any order and perhaps more items.
        item_ids: Ids of these rows, where embeddings do not bring them.
        groups: A category an item, integers or strings, None for none: shape (N,) in the order of
            `ids.item_ids`; or by item id, a dict, or a Series whose index has the ids (one that
            counts rows from 0 has not).
        against: An older version to compare with.
        column: Column of vectors, in Parquet and data frames.
        id_column: Column of ids, in Parquet and data frames.
        seed: Fixes the shuffled control of the groups.

    Raises:
        ArtifactError: If embeddings are a file that is missing or unreadable.
        ShapeError: If there is no item, or rows, dim or groups do not fit the items.
        DataError: If embeddings are not finite, or some item has none; or if groups come by other
            ids than the items'.
        ConfigError: If item_ids come without embeddings, against is no semantic IDs, or the seed
            no integer from 0.
    """
    check_seed(_WHERE, seed)
    if item_ids is not None and embeddings is None:
        raise ConfigError(f"{_WHERE}: item_ids are of embeddings; got None. Pass both, or neither.")
    if against is not None and not isinstance(against, type(ids)):
        raise ConfigError(
            f"{_WHERE}: against has to be semantic IDs; got {type(against).__name__}. Load them "
            "with SemanticIDs.load."
        )
    if not len(ids.item_ids):
        raise ShapeError(f"{_WHERE}: there is no item to measure. Add some first.")
    prefixes = prefix_groups(ids.codes)
    return Report(
        version=ids.version,
        number=ids.number,
        items=len(ids.item_ids),
        depth=ids.depth,
        collisions=ids.collisions,
        levels=level_figures(ids.codes, ids.codebook_sizes),
        prefixes=prefix_figures(prefixes),
        embeddings=_embedding_figures(
            ids, prefixes, embeddings, item_ids, column=column, id_column=id_column
        ),
        groups=None
        if groups is None
        else group_figures(prefixes, _by_item(ids, groups), seed=seed),
        drift=None if against is None else _drift(ids, against),
    )


def _by_item(ids: "SemanticIDs", groups: Any) -> Any:
    """Return groups in the order of the items, where they come by item id."""
    listed: Any
    if isinstance(groups, Mapping):
        listed, values = list(groups), groups.values()
    elif hasattr(groups, "to_numpy") and hasattr(groups, "index") and not _counts(groups.index):
        listed, values = groups.index, groups.to_numpy()
    else:
        return groups
    where = f"{_WHERE}: groups"
    keys = as_item_ids(where, listed)
    check_distinct(where, keys)
    check_kind(where, keys, ids.item_ids)
    rows = RowIndex(keys).find(ids.item_ids)
    given = np.fromiter([*values, None], object, len(keys) + 1)
    return given[rows]  # of row -1 the None at the end


def _counts(index: Any) -> bool:
    """Tell the index that pandas gives where nobody has given one."""
    return type(index).__name__ == "RangeIndex" and index.start == 0 and index.step == 1


def _embedding_figures(
    ids: "SemanticIDs",
    prefixes: tuple[NDArray[np.int64], ...],
    embeddings: Any,
    item_ids: Any,
    **columns: str | None,
) -> EmbeddingFigures | None:
    if embeddings is None:
        return None
    vectors, found = open_embeddings(_WHERE, embeddings, item_ids, **columns)
    if found is None:
        rows = np.arange(len(vectors))
        if len(vectors) != len(ids.item_ids):
            raise ShapeError(
                f"{_WHERE}: embeddings have {len(vectors)} rows for {len(ids.item_ids)} items. "
                "Pass one row an item in the order of item_ids, or rows with item ids."
            )
    else:
        check_kind(_WHERE, found, ids.item_ids)
        rows = RowIndex(ids.item_ids).find(found)
    decodes = ids.quantizer is not None
    if decodes and vectors.dim != ids.dim:
        raise ShapeError(
            f"{_WHERE}: embeddings have dimension {vectors.dim} but the IDs were fitted on "
            f"{ids.dim}. Pass those of the same encoder."
        )
    return embedding_figures(
        _chunks(vectors, rows),
        prefixes,
        vectors.dim,
        codes=ids.codes[:, : ids.depth],
        added=ids.added > 0,
        decode=ids.decode if decodes else None,
    )


def _chunks(
    vectors: Embeddings, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield vectors with the items they belong to; those of no item are left out."""
    done = 0
    for chunk in vectors.chunks():
        for start in range(0, len(chunk), _CHUNK_ROWS):
            part = chunk[start : start + _CHUNK_ROWS]
            items = rows[done : done + len(part)]
            done += len(part)
            known = items >= 0
            if known.any():
                yield part[known], items[known]


def _drift(ids: "SemanticIDs", older: "SemanticIDs") -> Drift:
    return measure_drift(
        ids.item_ids, ids.codes, older.item_ids, older.codes, against=older.version
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
