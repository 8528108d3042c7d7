"""`rqtool imagegen sample`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imagegen.cli.shared import RunArgument
from rqtoolkit.cli.console import progress_bar

__all__ = ["sample"]


def sample(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="New folder for the images.", show_default=False)],
    num: Annotated[int, typer.Option(help="Images to draw, a million at most.")] = 100,
    classes: Annotated[
        str | None, typer.Option(help="Classes to draw, as 0,3,7; all of them by default.")
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(help="Divides the logits; as the rest, the run's own unless given."),
    ] = None,
    top_k: Annotated[str | None, typer.Option(help="Codes kept; 0 keeps all.")] = None,
    top_p: Annotated[str | None, typer.Option(help="Probability mass kept; 1 keeps all.")] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Strength of guidance; 1: none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes the images.")] = None,
) -> None:
    """Draw images from a finished run as PNGs, with a grid and their codes.

    Temperature, top-k and top-p take one number, or one for each level of codes: 1.0,0.9,0.8,0.8.
    """
    from imagegen.jobs import draw_from_run, write_samples
    from imagegen.runs import Run
    from rqtoolkit.io.atomic import atomic_folder

    settings: dict[str, Any] = {
        "temperature": _numbers("temperature", temperature, float),
        "top_k": _numbers("top-k", top_k, int),
        "top_p": _numbers("top-p", top_p, float),
        "cfg_scale": cfg_scale,
    }
    chosen = _numbers("classes", classes, int)
    # The folder is taken before the work: what cannot be written is refused at once.
    with progress_bar() as progress, atomic_folder(out) as folder:
        samples = draw_from_run(
            Run.open(run),
            num,
            classes=[chosen] if isinstance(chosen, int) else chosen,
            seed=seed,
            progress=progress,
            **{name: value for name, value in settings.items() if value is not None},
        )
        write_samples(samples, folder)
    typer.echo(f"{num} images: {out}")


def _numbers(name: str, text: str | None, kind: type) -> Any:
    """Read one number, or a list with commas between."""
    from rqtoolkit.errors import ConfigError

    if text is None:
        return None
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        whole = "whole " if kind is int else ""
        raise ConfigError(
            f"sample: --{name}={text} must be {whole}numbers; got something else. Write one, or "
            f"several with commas between."
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]
