"""`rqtool imagegen evaluate` and `reconstruct`: a finished run looked at."""

from pathlib import Path
from typing import Annotated

import typer

from imagegen.cli.shared import RunArgument, show_metrics
from rqtoolkit.cli.console import print_json, progress_bar

__all__ = ["evaluate", "reconstruct"]


def evaluate(
    run: RunArgument,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print metrics.json and nothing else to stdout.")
    ] = False,
) -> None:
    """Score a finished run on held-out images; writes metrics.json and report.html into it."""
    from imagegen.runs import Run
    from imagegen.scoring import evaluate_run

    with progress_bar() as progress:
        metrics = evaluate_run(Run.open(run), progress=progress)
    if as_json:
        print_json(metrics)
    else:
        show_metrics(metrics)
        typer.echo(f"Report: {run / 'report.html'}")


def reconstruct(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="New folder for the images.", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Argument(help="A folder or .npz of images; the held-out ones by default."),
    ] = None,
) -> None:
    """Send images through the RQ-VAE; writes a grid of every depth, PNGs and codes."""
    from imagegen.jobs import reconstruct_images
    from imagegen.runs import Run
    from rqtoolkit.io.atomic import atomic_folder

    with progress_bar() as progress, atomic_folder(out) as folder:
        errors = reconstruct_images(Run.open(run), images, folder, progress=progress)
    for depth, error in enumerate(errors, start=1):
        typer.echo(f"relative error at depth {depth}: {error:.4%}")
    typer.echo(f"Reconstructions: {out}")
