"""What several commands share: the argument that names a run, figures on the terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["RunArgument", "show_metrics"]

RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]


def show_metrics(metrics: dict[str, Any]) -> None:
    """Print the figures that a person looks at first."""
    rows = [
        ("relative error at depth 1, 2, …", "reconstruction_relative_error", "{:.2%}"),
        ("bits per code at depth 1, 2, …", "bits_per_code", "{:.2f}"),
        ("  of codes drawn by frequency", "unigram_bits_per_code", "{:.2f}"),
    ]
    rows[1:1] = [
        ("PSNR in dB at depth 1, 2, …", "psnr", "{:.2f}"),
        ("SSIM at depth 1, 2, …", "ssim", "{:.4f}"),
        ("LPIPS at depth 1, 2, …", "lpips", "{:.4f}"),
    ]
    for title, key, form in rows:
        if key not in metrics:  # small images have no SSIM, runs without stage 2 no bits
            continue
        typer.echo(f"{title:34} {'  '.join(form.format(value) for value in metrics[key])}")
    for name, reference in (
        ("class_accuracy", "class_accuracy_ceiling"),
        ("coverage", "coverage_floor"),
        ("recall", "recall_floor"),
    ):
        if name not in metrics:  # images without classes leave these out
            continue
        title = name.replace("_", " ")
        typer.echo(f"{title:34} {metrics[name]:.3f}  (real images: {metrics[reference]:.3f})")
    for scores in metrics.get("scores", []):
        if "frechet_distance" in scores:
            size, name = scores["protocol"]["images"], scores["protocol"]["extractor"]["name"]
            typer.echo(f"{scores['name']:34} {scores['frechet_distance']:.3f}  ({size:,}, {name})")
    if "seconds" in metrics:
        typer.echo(f"{'seconds':34} {metrics['seconds']:.0f}")
