"""`rqtool semantic-ids export` and `import`: semantic IDs in the files of other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rqtoolkit.cli.console import print_figures
from rqtoolkit.cli.semantic_ids import options as opt
from rqtoolkit.errors import ConfigError

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids import SemanticIDs
    from rqtoolkit.semantic_ids.formats import ItemCodes

__all__ = ["export_command", "import_command"]

_STYLE = "<{level}_{code}>"


def export_command(
    folder: opt.Folder,
    to: Annotated[opt.Format, typer.Option(help="Layout of the file.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    style: opt.Style = None,
    ids_out: Annotated[
        Path | None,
        typer.Option(help="Text file for the item ids, which the tensor does not hold (grid)."),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Write items and their codes as other tools read them."""
    from rqtoolkit.semantic_ids import SemanticIDs

    opt.check_file(out)
    tokens_style = _token_style(style, "--to", to)
    if ids_out is not None:
        if to is not opt.Format.GRID:
            raise ConfigError(f"--ids-out={ids_out} is for --to=grid: others hold the ids.")
        if opt.check_file(ids_out) == out:
            raise ConfigError(f"--ids-out={ids_out} is also --out. Choose another name.")
    catalogue = SemanticIDs.load(folder)
    _write(catalogue, to, out, tokens_style, ids_out)
    figures = {
        "items": len(catalogue),
        "length": catalogue.length,
        "bytes": out.stat().st_size,
    }
    print_figures(figures, as_json=as_json, wrote=out)


def import_command(
    file: Annotated[Path, typer.Argument(help="File of another tool.", show_default=False)],
    source: Annotated[opt.Format, typer.Option("--from", help="Layout of the file.")],
    out: opt.NewFolder,
    codebook_size: Annotated[
        str | None,
        typer.Option(
            help="Entries of each level, 256,256,256.", show_default="largest code and one"
        ),
    ] = None,
    counter: Annotated[
        bool, typer.Option("--counter", help="The last code only tells items apart.")
    ] = False,
    style: opt.Style = None,
    ids: Annotated[
        Path | None,
        typer.Option(help="Ids of the tensor's columns: text, .npy or .parquet (grid)."),
    ] = None,
    encoder: opt.Encoder = None,
    as_json: opt.Json = False,
) -> None:
    """Make a folder of semantic IDs from a file of another tool, without codebooks.

    Reports, look-ups, recommenders and exports work with it; new items need codebooks.
    """
    from rqtoolkit.cli.semantic_ids.items import read_ids
    from rqtoolkit.cli.semantic_ids.session import check_new_folder, version_figures
    from rqtoolkit.semantic_ids import SemanticIDs

    check_new_folder(out)
    if ids is not None and source is not opt.Format.GRID:
        raise ConfigError(f"--ids={ids} is for --from=grid: others hold the ids.")
    sizes = None if codebook_size is None else opt.numbers("--codebook-size", codebook_size)
    found = _read(source, file, sizes, counter, _token_style(style, "--from", source))
    made = SemanticIDs.from_codes(
        found.codes,
        found.item_ids if ids is None else read_ids(ids),
        codebook_sizes=found.codebook_sizes,
        collisions="token" if counter else "allow",
        encoder=encoder,
    )
    made.save(out)
    figures = version_figures(made) | {"length": made.length}
    print_figures(figures, as_json=as_json, more={"codebook_sizes": made.codebook_sizes}, wrote=out)


def _token_style(style: str | None, option: str, chosen: opt.Format) -> str:
    if style is not None and chosen is not opt.Format.TOKENS:
        raise ConfigError(f"--style={style} is for {option}=tokens; got {chosen.value}.")
    return _STYLE if style is None else style


def _write(
    catalogue: "SemanticIDs", to: opt.Format, out: Path, style: str, ids_out: Path | None
) -> None:
    from rqtoolkit.cli.semantic_ids import items
    from rqtoolkit.semantic_ids import formats

    pairs = catalogue.item_ids, catalogue.codes
    match to:
        case opt.Format.LC_REC:
            formats.write_index_json(out, *pairs)
        case opt.Format.GRID:
            in_order = None if ids_out else catalogue.item_ids
            formats.write_grid(out, catalogue.codes, in_order)
            if ids_out is not None:
                items.write_ids(ids_out, catalogue.item_ids)
        case opt.Format.TORCH_EASY_REC:
            counter = catalogue.collisions == "token"
            sizes = catalogue.codebook_sizes
            formats.write_item_to_sid(out, *pairs, sizes, counter=counter)
        case opt.Format.TOKENS:
            items.write_tokens(out, *pairs, style)
        case opt.Format.CSV:
            items.write_csv(out, *pairs)
        case opt.Format.PARQUET:
            items.write_parquet(out, *pairs)


def _read(
    source: opt.Format, file: Path, sizes: list[int] | None, counter: bool, style: str
) -> "ItemCodes":
    from rqtoolkit.cli.semantic_ids import items
    from rqtoolkit.semantic_ids import formats

    match source:
        case opt.Format.LC_REC:
            return formats.read_index_json(file, codebook_sizes=sizes)
        case opt.Format.GRID:
            return formats.read_grid(file, counter=counter, codebook_sizes=sizes)
        case opt.Format.TORCH_EASY_REC:
            return formats.read_item_to_sid(file, counter=counter, codebook_sizes=sizes)
        case opt.Format.TOKENS:
            return items.read_tokens(file, style, sizes)
        case opt.Format.CSV:
            return items.read_csv(file, sizes)
        case opt.Format.PARQUET:
            return items.read_parquet(file, sizes)
