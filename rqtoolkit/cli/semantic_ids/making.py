"""`rqtool semantic-ids fit` and `assign`: a folder of semantic IDs from a file of embeddings."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rqtoolkit.cli.console import print_figures
from rqtoolkit.cli.semantic_ids import options as opt
from rqtoolkit.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids import SemanticIDs

__all__ = ["assign", "fit"]


def fit(
    data: opt.Data,
    out: opt.NewFolder,
    depth: Annotated[int, typer.Option(min=1, help="Codes an item.")] = 3,
    codebook_size: opt.CodebookSize = "256",
    method: Annotated[opt.Method, typer.Option(help="Kind of codebooks.")] = opt.Method.RESIDUAL,
    collisions: opt.CollisionsOption = opt.Collisions.MATCH,
    balance: Annotated[
        float | None,
        typer.Option(help="Most items of a first code, in units of the even share; from 1 on."),
    ] = None,
    scale_columns: Annotated[
        bool, typer.Option("--scale-columns", help="Scale each column to one spread.")
    ] = False,
    settings: opt.Settings = None,
    encoder: opt.Encoder = None,
    ids: opt.Ids = None,
    id_column: opt.IdColumn = None,
    column: opt.Column = None,
    key: opt.Key = None,
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
) -> None:
    """Learn codebooks of embeddings and give every item codes."""
    from rqtoolkit.cli.semantic_ids.session import (
        check_new_folder,
        embeddings,
        parse_settings,
        rows_ids,
        working,
    )
    from rqtoolkit.semantic_ids import SemanticIDs

    check_new_folder(out)
    sizes = opt.level_sizes(codebook_size)
    with working(threads) as progress:
        vectors, item_ids = embeddings(data, key), rows_ids(ids, id_column)
        start = time.perf_counter()
        made = SemanticIDs.fit(
            vectors,
            item_ids,
            depth=depth,
            codebook_size=sizes,
            method=method.value,
            collisions=collisions.value,
            balance=balance,
            scale_columns=scale_columns,
            settings=parse_settings(settings),
            encoder=encoder,
            column=column,
            id_column=id_column,
            threads=threads,
            seed=seed,
            progress=progress,
        )
        seconds = time.perf_counter() - start
        made.save(out)
    _show(made, out, seconds, as_json=as_json)


def assign(
    codebooks: Annotated[
        Path,
        typer.Argument(
            help="Folder of semantic IDs, or quantizer of `rqtool quantize fit`.",
            show_default=False,
        ),
    ],
    data: opt.Data,
    out: opt.NewFolder,
    collisions: opt.CollisionsOption = opt.Collisions.MATCH,
    encoder: opt.Encoder = None,
    ids: opt.Ids = None,
    id_column: opt.IdColumn = None,
    column: opt.Column = None,
    key: opt.Key = None,
    threads: opt.Threads = None,
    as_json: opt.Json = False,
) -> None:
    """Give every item of a new catalogue codes by codebooks that are there."""
    from rqtoolkit.cli.semantic_ids.session import check_new_folder, embeddings, rows_ids, working
    from rqtoolkit.quantizers import load_quantizer
    from rqtoolkit.semantic_ids import SemanticIDs

    check_new_folder(out)
    if not codebooks.exists():
        raise ArtifactError(f"{codebooks} does not exist. Name codebooks.")
    if codebooks.is_dir():
        source = SemanticIDs.load(codebooks, encoder=encoder)
        if source.quantizer is None:
            raise ConfigError(f"{codebooks} has no codebooks; its codes were made elsewhere.")
        quantizer, standardization = source.quantizer, source.standardization
        encoder = source.encoder
    else:
        quantizer, standardization = load_quantizer(codebooks), None
    with working(threads) as progress:
        vectors, item_ids = embeddings(data, key), rows_ids(ids, id_column)
        start = time.perf_counter()
        made = SemanticIDs.assign(
            quantizer,
            vectors,
            item_ids,
            standardization=standardization,
            collisions=collisions.value,
            encoder=encoder,
            column=column,
            id_column=id_column,
            threads=threads,
            progress=progress,
        )
        seconds = time.perf_counter() - start
        made.save(out)
    _show(made, out, seconds, as_json=as_json)


def _show(made: "SemanticIDs", out: Path, seconds: float, *, as_json: bool) -> None:
    from rqtoolkit.cli.semantic_ids.session import version_figures
    from rqtoolkit.semantic_ids.figures import prefix_figures, prefix_groups

    shared = prefix_figures(prefix_groups(made.codes))[-1]
    figures = version_figures(made) | {
        "mse": made.mse,
        "duplicate_rate": shared.duplicate_rate,
        "shared_rate": shared.shared_rate,
        "seconds": seconds,
    }
    print_figures(figures, as_json=as_json, more={"codebook_sizes": made.codebook_sizes}, wrote=out)
