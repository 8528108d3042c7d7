"""`rqtool semantic-ids lookup`: codes of items, and items of codes."""

from typing import Annotated

import typer

from rqtoolkit.cli.console import print_json, print_table
from rqtoolkit.cli.semantic_ids import options as opt
from rqtoolkit.errors import ConfigError

__all__ = ["lookup"]


def lookup(
    folder: opt.Folder,
    items: Annotated[
        list[str] | None, typer.Argument(help="Ids of items.", show_default=False)
    ] = None,
    file: opt.IdsFile = None,
    codes: Annotated[
        list[str] | None,
        typer.Option(help="Codes whose items to find, in place of ids: 12,7,201. Repeatable."),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Show the codes of items, or with --codes the items of codes; a dash where there are none."""
    from rqtoolkit.cli.semantic_ids.session import named_items
    from rqtoolkit.semantic_ids import SemanticIDs

    catalogue = SemanticIDs.load(folder)
    if codes:
        if items or file:
            raise ConfigError("--codes stands in place of ids. Leave out the one or the other.")
        table = [_codes(text, catalogue.length) for text in codes]
        groups = [group.tolist() for group in catalogue.items_of(table, all=True)]
        if as_json:
            print_json([{"codes": c, "item_ids": g} for c, g in zip(table, groups, strict=True)])
            return
        rows = [[*c, item] for c, g in zip(table, groups, strict=True) for item in g or ["–"]]
        print_table([*_heads(catalogue.length), "item_id"], rows)
        return
    wanted = named_items(items, file, catalogue)
    found = catalogue.lookup(wanted, errors="null").tolist()
    known = [row if row[0] >= 0 else None for row in found]
    pairs = list(zip(wanted.tolist(), known, strict=True))
    if as_json:
        print_json([{"item_id": item, "codes": row} for item, row in pairs])
        return
    dashes = ["–"] * catalogue.length
    rows = [[item, *(row or dashes)] for item, row in pairs]
    print_table(["item_id", *_heads(catalogue.length)], rows)


def _heads(length: int) -> list[str]:
    return [f"code_{level}" for level in range(length)]


def _codes(text: str, length: int) -> list[int]:
    try:
        codes = [int(part) for part in text.split(",")]
    except ValueError:
        codes = []
    if len(codes) != length:
        example = ",".join(["0"] * length)
        raise ConfigError(f"--codes={text} has to be {length} whole numbers, as in {example}.")
    return codes
