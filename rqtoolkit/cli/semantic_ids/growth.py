"""`rqtool semantic-ids add`, `remove` and `refit`: new versions of a catalogue."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rqtoolkit.cli.console import message, print_figures, print_table
from rqtoolkit.cli.semantic_ids import options as opt
from rqtoolkit.errors import ConfigError

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids import Delta, SemanticIDs, Stability

__all__ = ["add", "refit", "remove"]

_SHOWN = 10

Out = Annotated[
    Path | None,
    typer.Option(help="New folder for the new version.", show_default="FOLDER, in its place"),
]


def add(
    folder: opt.Folder,
    data: opt.Data,
    out: Out = None,
    delta: Annotated[
        Path | None, typer.Option(help="Parquet file to write the new items to.")
    ] = None,
    encoder: opt.Encoder = None,
    ids: opt.Ids = None,
    id_column: opt.IdColumn = None,
    column: opt.Column = None,
    key: opt.Key = None,
    threads: opt.Threads = None,
    as_json: opt.Json = False,
) -> None:
    """Publish new items in a new version; no published ID moves.

    Items that are published already are left alone, so that adding twice is adding once.
    """
    import numpy as np

    from rqtoolkit.cli.semantic_ids.items import write_parquet
    from rqtoolkit.cli.semantic_ids.session import embeddings, rows_ids, working
    from rqtoolkit.io.tables import check_suffix
    from rqtoolkit.semantic_ids import SemanticIDs

    _check_out(folder, out)
    if delta is not None:
        check_suffix(opt.check_file(delta, data, ids), (".parquet",))
    catalogue = SemanticIDs.load(folder, encoder=encoder)
    with working(threads) as progress:
        if ids is None and id_column is None and data.suffix.lower() != ".parquet":
            raise ConfigError("add needs the ids of the new items. Name --id-column or --ids.")
        new = catalogue.add(
            embeddings(data, key),
            rows_ids(ids, id_column, catalogue.item_ids),
            column=column,
            id_column=id_column,
            threads=threads,
            progress=progress,
        )
        if delta is not None:  # first: of a catalogue that has grown it could not be had again
            added = np.full(len(new), new.number, np.int32)
            write_parquet(delta, new.item_ids, new.codes, added=added)
        if len(new) or out is not None:
            catalogue.save(out or folder)
    _show_delta(catalogue, new, as_json=as_json)
    if not as_json:
        message(f"Wrote {out or folder}" if len(new) or out else f"Nothing new: {folder} stays.")


def remove(
    folder: opt.Folder,
    items: Annotated[
        list[str] | None, typer.Argument(help="Ids of items to retire.", show_default=False)
    ] = None,
    file: opt.IdsFile = None,
    out: Out = None,
    as_json: opt.Json = False,
) -> None:
    """Retire items in a new version; no item ever gets the codes they had."""
    from rqtoolkit.cli.semantic_ids.session import named_items, version_figures
    from rqtoolkit.semantic_ids import SemanticIDs

    _check_out(folder, out)
    catalogue = SemanticIDs.load(folder)
    retired = catalogue.remove(named_items(items, file, catalogue))
    if retired or out is not None:
        catalogue.save(out or folder)
    figures = {"retired": retired, **version_figures(catalogue)}
    print_figures(figures, as_json=as_json)
    if as_json:
        return
    message(f"Wrote {out or folder}" if retired or out else f"Nothing to retire: {folder} stays.")


def refit(
    folder: opt.Folder,
    data: opt.Data,
    out: opt.NewFolder,
    warm_start: Annotated[
        bool, typer.Option(help="Go on from the codebooks there are, so that most codes stay.")
    ] = True,
    codebook_size: Annotated[
        str | None,
        typer.Option(
            help="Entries of each level, without warm start.", show_default="as it was fitted"
        ),
    ] = None,
    settings: opt.Settings = None,
    encoder: opt.Encoder = None,
    ids: opt.Ids = None,
    id_column: opt.IdColumn = None,
    column: opt.Column = None,
    key: opt.Key = None,
    threads: opt.Threads = None,
    as_json: opt.Json = False,
) -> None:
    """Train the codebooks for the items of today, and say how many codes stay as they were."""
    from rqtoolkit.cli.semantic_ids.session import (
        check_new_folder,
        embeddings,
        parse_settings,
        rows_ids,
        working,
    )
    from rqtoolkit.semantic_ids import SemanticIDs

    check_new_folder(out)
    sizes = None if codebook_size is None else opt.level_sizes(codebook_size)
    catalogue = SemanticIDs.load(folder, encoder=encoder)
    with working(threads) as progress:
        new, stability = catalogue.refit(
            embeddings(data, key),
            rows_ids(ids, id_column, catalogue.item_ids),
            warm_start=warm_start,
            codebook_size=sizes,
            settings=parse_settings(settings) or None,
            column=column,
            id_column=id_column,
            threads=threads,
            progress=progress,
        )
        new.save(out)
    _show_stability(new, stability, as_json=as_json)
    if not as_json:
        message(f"Wrote {out}")


def _check_out(folder: Path, out: Path | None) -> None:
    from rqtoolkit.cli.semantic_ids.session import check_new_folder

    if out is not None and not (out.exists() and folder.exists() and out.samefile(folder)):
        check_new_folder(out)


def _show_delta(catalogue: "SemanticIDs", new: "Delta", *, as_json: bool) -> None:
    from rqtoolkit.cli.semantic_ids.session import version_figures

    figures = {"added": len(new), **version_figures(catalogue)}
    figures |= {"mse": new.mse, "fitted_mse": new.fitted_mse}
    codes = {"item_ids": new.item_ids.tolist(), "codes": new.codes.tolist()}
    print_figures(figures, as_json=as_json, more={"parent": new.parent} | codes)
    if as_json:
        return
    if len(new):
        levels = [f"code_{level}" for level in range(catalogue.length)]
        rows = zip(new.item_ids[:_SHOWN].tolist(), new.codes[:_SHOWN].tolist(), strict=True)
        print_table(["item_id", *levels], [[item, *codes] for item, codes in rows])
    if len(new) > _SHOWN:
        print(f"… and {len(new) - _SHOWN} more")


def _show_stability(new: "SemanticIDs", stability: "Stability", *, as_json: bool) -> None:
    from rqtoolkit.cli.semantic_ids.session import version_figures

    figures = version_figures(new) | {
        "parent": new.parent,
        "common": stability.items,
        "old_mse": stability.old_mse,
        "new_mse": stability.new_mse,
    }
    print_figures(figures, as_json=as_json, more={"kept": stability.kept})
    if not as_json:
        kept = [[length, share] for length, share in enumerate(stability.kept, start=1)]
        print_table(["first_codes", "kept"], kept)
