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
    num: Annotated[int, typer.Option(help="Images to draw.")] = 100,
    classes: Annotated[
        str | None, typer.Option(help="Classes to draw, as 0,3,7; all of them by default.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="What to draw, for models of text; may be repeated.")
    ] = None,
    texts: Annotated[Path | None, typer.Option(help="A file with a text a line.")] = None,
    prefix: Annotated[
        Path | None, typer.Option(help="An image to complete: its first --rows are kept.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of codes kept of --prefix.")] = None,
    temperature: Annotated[
        str | None,
        typer.Option(help="Divides the logits; as the rest, the run's own unless given."),
    ] = None,
    top_k: Annotated[str | None, typer.Option(help="Codes kept; 0 keeps all.")] = None,
    top_p: Annotated[str | None, typer.Option(help="Probability mass kept; 1 keeps all.")] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Strength of guidance; 1: none.")] = None,
    accept: Annotated[
        float | None, typer.Option(help="Share kept by a classifier, as 0.05; 1 keeps all.")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Weights of that classifier; the run's own by default.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images drawn at a time.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16; the run's by default.")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="What to write: png, npz, or both.")
    ] = "png,npz",
    seed: Annotated[int | None, typer.Option(help="Fixes the images.")] = None,
) -> None:
    """Draw images from a finished run as PNGs and samples.npz, with a grid and their codes.

    Temperature, top-k and top-p take one number, or one for each level of codes: 1.0,0.9,0.8,0.8.
    A job that is stopped goes on when the same command is given again, and `torchrun` shares it
    among processes: the images stay the same.
    """
    from imagegen.distributed import join
    from imagegen.runs import Run
    from imagegen.sample_jobs import check_new_folder, sample_to_folder

    check_new_folder(out)  # before the work: what cannot be written is refused at once
    chosen = _numbers("classes", classes, int)
    settings: dict[str, Any] = {
        "temperature": _numbers("temperature", temperature, float),
        "top_k": _numbers("top-k", top_k, int),
        "top_p": _numbers("top-p", top_p, float),
        "cfg_scale": cfg_scale,
        "accept": accept,
        "batch_size": batch_size,
    }
    with progress_bar() as progress, join() as ranks:
        record = sample_to_folder(
            Run.open(run),
            out,
            num,
            classes=[chosen] if isinstance(chosen, int) else chosen,
            texts=_texts(text, texts),
            prefix=prefix,
            rows=rows,
            classifier=classifier,
            dtype=dtype,
            seed=seed,
            formats=[part.strip() for part in formats.split(",")],
            ranks=ranks,
            progress=progress if ranks.main else None,
            **{name: value for name, value in settings.items() if value is not None},
        )
    if not ranks.main:
        return
    if "acceptance" in record:
        kept, drawn = record["acceptance"]["kept"], record["acceptance"]["drawn"]
        typer.echo(f"kept {kept} of {drawn}, those the classifier was surest of")
    typer.echo(f"{num} images: {out}")


def _texts(given: list[str] | None, file: Path | None) -> list[str] | None:
    """Return the texts of the options and of the file, one a line; None where there are none."""
    from rqtoolkit.errors import ArtifactError, ConfigError

    texts = list(given or [])
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"sample: --texts={file} cannot be read; got {type(error).__name__}. Give a text "
                f"file in UTF-8."
            ) from None
        texts += [line.strip() for line in lines if line.strip()]
        if not texts:
            raise ConfigError(f"sample: --texts={file} holds no text. Write one a line.")
    return texts or None


def _numbers(name: str, text: str | None, kind: type) -> Any:
    """Read one number, or a list with commas between."""
    from rqtoolkit.errors import ConfigError

    if text is None:
        return None
    numbers = []
    for part in text.split(","):
        try:
            numbers.append(kind(part))
        except ValueError:
            whole = "whole " if kind is int else ""
            raise ConfigError(
                f"sample: --{name}={text} must be {whole}numbers; got {part!r}. Write one, or "
                f"several with commas between."
            ) from None
    return numbers if len(numbers) > 1 else numbers[0]
