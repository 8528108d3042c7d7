"""`rqtool demo`."""

from pathlib import Path
from typing import Annotated

import typer

from imagegen.cli.shared import show_metrics
from rqtoolkit.cli.console import progress_bar

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Fixes the result to the bit.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tenth of the training: shows that it works.")
    ] = False,
) -> None:
    """Train on 1,797 handwritten digits, sample, evaluate, write report.html: about 4 minutes."""
    from imagegen.demo import run_demo

    with progress_bar() as progress:
        metrics = run_demo(out, seed=seed, quick=quick, progress=progress)
    show_metrics(metrics)
    typer.echo(f"Report: {out / 'report.html'}")
