"""`rqtool imagegen compress` and `decompress`: images as files of a few bytes."""

from pathlib import Path
from typing import Annotated

import typer

from imagegen.cli.shared import RunArgument
from rqtoolkit.cli.console import print_json, progress_bar

__all__ = ["compress", "decompress"]


def compress(
    run: RunArgument,
    images: Annotated[
        list[Path],
        typer.Argument(help="Image files, folders or .npz archives.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="File to write, *.rqc.", show_default=False)],
    label: Annotated[
        int | None,
        typer.Option(help="Class of all images; the one that costs least by default."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="What the images show, for models of texts.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images coded together.")] = 32,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON and nothing else to stdout.")
    ] = False,
) -> None:
    """Write images as one file: their codes, entropy-coded with the run's own transformer.

    What is lost is lost in the codes; `decompress` brings the codes back exactly. Do both on the
    same kind of machine: where sums are rounded differently the file cannot be read, and says so.
    """
    from imagegen.codec_jobs import compress_images
    from imagegen.runs import Run

    with progress_bar() as progress:
        figures = compress_images(
            Run.open(run),
            images,
            out,
            label=label,
            text=text,
            batch_size=batch_size,
            progress=progress,
        )
    if as_json:
        print_json(figures)
        return
    number, size = figures["images"], figures["bytes"]
    typer.echo(f"{number} images, {size:,} bytes, {size / number:,.1f} an image")
    typer.echo(f"the model's bits / 8        {figures['model_bits'] / 8:,.1f} bytes")
    typer.echo(f"codes without entropy code  {figures['fixed_bits'] / 8:,.1f} bytes")
    typer.echo(f"pixels, uncompressed        {figures['pixel_bytes']:,} bytes")
    typer.echo(f"PSNR of what comes back     {figures['psnr']:.2f} dB, mean over images")
    typer.echo(f"Compressed: {out}")


def decompress(
    run: RunArgument,
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="What compress wrote.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="New folder for the images.", show_default=False)],
) -> None:
    """Write the images of a compressed file as PNGs, with a grid and their codes."""
    from imagegen.codec_jobs import decompress_images
    from imagegen.runs import Run

    with progress_bar() as progress:
        number = decompress_images(Run.open(run), source, out, progress=progress)
    typer.echo(f"{number} images: {out}")
