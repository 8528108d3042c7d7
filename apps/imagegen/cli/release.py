"""`rqtool imagegen import` and `export`: the checkpoints of the paper's authors."""

from pathlib import Path
from typing import Annotated

import typer

from imagegen.cli.shared import RunArgument
from rqtoolkit.cli.console import progress_bar

__all__ = ["export_command", "import_command"]


def import_command(
    release: Annotated[
        Path, typer.Argument(help="Folder with stage1 and stage2.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="New folder of the run.", show_default=False)],
    ema: Annotated[
        bool, typer.Option("--ema", help="Take state_dict_ema, the average over training.")
    ] = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.json, or the folder of the authors' vocabulary and merges."),
    ] = None,
) -> None:
    """Read a checkpoint of the paper's authors as a run, to sample, evaluate and go on from."""
    from imagegen.checkpoints.transfer import import_run

    with progress_bar() as progress:
        notes = import_run(release, out, ema=ema, tokenizer=tokenizer, progress=progress)
    for note in notes:
        typer.echo(f"Note: {note}", err=True)
    typer.echo(f"Imported: {out}")


def export_command(
    run: RunArgument,
    out: Annotated[
        Path, typer.Option(help="New folder, in the authors' layout.", show_default=False)
    ],
) -> None:
    """Write a run as stage1 and stage2 that the code of the paper's authors reads."""
    from imagegen.checkpoints.transfer import export_run
    from imagegen.runs import Run

    for note in export_run(Run.open(run), out):
        typer.echo(f"Note: {note}", err=True)
    typer.echo(f"Exported: {out}")
