"""`rqtool semantic-ids report`: how good are these semantic IDs?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rqtoolkit.cli.console import message, print_wide
from rqtoolkit.cli.semantic_ids import options as opt
from rqtoolkit.errors import ConfigError

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids import SemanticIDs

__all__ = ["report"]


def report(
    folder: opt.Folder,
    data: Annotated[
        Path | None, typer.Option(help="Embeddings: adds distortion and cohesion.")
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="Category an item: .parquet, or text with lines of id, tab, category. Adds purity."
        ),
    ] = None,
    group_column: Annotated[
        str | None, typer.Option(help="Parquet column of categories.", show_default="group")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Folder of another version: adds drift.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Page with plots to write, .html.")] = None,
    ids: opt.Ids = None,
    id_column: opt.IdColumn = None,
    column: opt.Column = None,
    key: opt.Key = None,
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
) -> None:
    """Measure collisions, use of codes, and with more inputs distortion, purity and drift."""
    from rqtoolkit.cli.semantic_ids.session import embeddings, rows_ids, working
    from rqtoolkit.io.tables import check_suffix
    from rqtoolkit.semantic_ids import SemanticIDs
    from rqtoolkit.semantic_ids.report import make_report

    if html is not None:
        check_suffix(opt.check_file(html, data, groups, ids), (".html",))
    if group_column is not None and groups is None:
        raise ConfigError("--group-column needs --groups: the file that has it.")
    of_data = {"--ids": ids, "--column": column, "--key": key}
    if data is None and (given := [name for name, value in of_data.items() if value is not None]):
        raise ConfigError(f"{given[0]} needs --data: the embeddings it is about.")
    catalogue = SemanticIDs.load(folder)
    older = None if against is None else SemanticIDs.load(against)
    with working(threads):
        # The name may be of the groups' file alone.
        in_data = id_column if groups is None or _is_parquet(data) else None
        found = make_report(
            catalogue,
            None if data is None else embeddings(data, key),
            item_ids=rows_ids(ids, in_data, catalogue.item_ids),
            groups=None if groups is None else _groups(groups, catalogue, id_column, group_column),
            against=older,
            column=column,
            id_column=in_data,
            seed=seed,
        )
        if html is not None:
            found.to_html(html)
    if as_json:
        print(found.to_json())
        return
    print_wide(found.table())
    if html is not None:
        message(f"Wrote {html}")


def _groups(
    path: Path, catalogue: "SemanticIDs", id_column: str | None, group_column: str | None
) -> list[Any]:
    """Return the category of each item of the catalogue, None for those not in the file."""
    from rqtoolkit.cli.semantic_ids.items import ids_of_words, read_column, read_text
    from rqtoolkit.semantic_ids.items import as_item_ids

    if _is_parquet(path):
        items = as_item_ids(str(path), read_column(path, id_column or "item_id"))
        labels = read_column(path, group_column or "group").to_pylist()
    else:
        if group_column is not None:
            raise ConfigError(f"--group-column={group_column} is for Parquet files; got {path}.")
        pairs = [line.partition("\t") for line in read_text(path)]
        if not pairs or not all(tab for _, tab, _ in pairs):
            raise ConfigError(f"{path} has to hold lines of an id, a tab and a category.")
        items = ids_of_words([item.strip() for item, _, _ in pairs], catalogue.item_ids)
        labels = [label for _, _, label in pairs]
    rows = catalogue.rows(items)
    groups: list[Any] = [None] * len(catalogue)
    for row, label in zip(rows.tolist(), labels, strict=True):
        if row >= 0:
            groups[row] = label
    return groups


def _is_parquet(path: Path | None) -> bool:
    return path is not None and path.suffix.lower() == ".parquet"
