"""`rqtool imagegen evaluate` and `reconstruct`: a finished run looked at."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imagegen.cli.shared import RunArgument, show_metrics
from rqtoolkit.cli.console import print_json, print_table, progress_bar

__all__ = ["evaluate", "reconstruct"]

VggOption = Annotated[
    Path | None, typer.Option(help="VGG16's public weights, vgg16-397923af.pth, for LPIPS.")
]
LpipsOption = Annotated[
    Path | None, typer.Option(help="The heads of LPIPS v0.1 for VGG16, vgg.pth.")
]


def evaluate(
    run: RunArgument,
    inception: Annotated[
        Path | None,
        typer.Option(help="FID's public weights, pt_inception-2015-12-05-6726825d.pth."),
    ] = None,
    vgg: VggOption = None,
    lpips: LpipsOption = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="What gFID compares with: .safetensors, ADM .npz or folder; the training images "
            "by default."
        ),
    ] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Keep the statistics of the reference in a .safetensors.")
    ] = None,
    num: Annotated[
        int | None, typer.Option(help="Samples to draw; one for each held-out image by default.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Samples to score in place of drawn ones: folder or .npz.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print metrics.json and nothing else to stdout.")
    ] = False,
) -> None:
    """Score a finished run on held-out images; writes metrics.json and report.html into it."""
    from imagegen.runs import Run
    from imagegen.scoring import evaluate_run

    with progress_bar() as progress:
        metrics = evaluate_run(
            Run.open(run),
            inception=inception,
            vgg=vgg,
            lpips=lpips,
            reference=reference,
            save=save_reference,
            number=num,
            given=samples,
            progress=progress,
        )
    if as_json:
        print_json(metrics)
    else:
        show_metrics(metrics)
        typer.echo(f"Report: {run / 'report.html'}")


def reconstruct(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="New folder for the images.", show_default=False)],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files, folders, .npz archives; the held-out ones by default."),
    ] = None,
    vgg: VggOption = None,
    lpips: LpipsOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print errors.json and nothing else to stdout.")
    ] = False,
) -> None:
    """Send images through the autoencoder; writes a grid of every depth, PNGs, codes and errors.

    Images may have any size: the central square is brought to the run's.
    """
    from imagegen.reconstruct_jobs import reconstruct_images
    from imagegen.runs import Run
    from imagegen.sample_jobs import check_new_folder

    check_new_folder(out)
    with progress_bar() as progress:
        found = reconstruct_images(
            Run.open(run), images or [], out, vgg=vgg, lpips=lpips, progress=progress
        )
    if as_json:
        print_json(found)
        return
    print_table(*_error_table(found["levels"]))
    typer.echo(f"Reconstructions of {found['images']} images: {out}")


def _error_table(levels: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the errors by depth."""
    columns = {
        "depth": ("depth", "{}"),
        "bits_per_image": ("bits per image", "{:,.0f}"),
        "relative_error": ("relative error", "{:.4%}"),
        "psnr": ("PSNR, dB", "{:.2f}"),
        "ssim": ("SSIM", "{:.4f}"),
        "lpips": ("LPIPS", "{:.4f}"),
    }
    there = {name: column for name, column in columns.items() if name in levels[0]}
    rows = [[form.format(row[name]) for name, (_, form) in there.items()] for row in levels]
    return [title for title, _ in there.values()], rows
