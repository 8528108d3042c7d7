"""Commands `rqtool imagegen ...` and `rqtool demo`: parse, call, show. Loads torch only to work."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rqtoolkit.cli.console import print_json, progress_bar

__all__ = ["app", "demo"]

app = typer.Typer(
    help="Generate images: train an RQ-VAE and an RQ-Transformer, sample, evaluate.",
    no_args_is_help=True,
)

RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]


@app.command()
def train(
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or a shipped configuration: digits, fashion_mnist.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="File or folder of images, in place of data.path.")
    ] = None,
    stage: Annotated[str, typer.Option(help="1, 2 or both.")] = "both",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run.")] = False,
    seed: Annotated[int | None, typer.Option(help="In place of the configuration's.")] = None,
) -> None:
    """Train both stages of a configuration in a run folder.

    Ctrl-C leaves a run that --resume takes up where it stopped, equal to the bit to one that was
    never interrupted.
    """
    from imagegen.config import load_config
    from imagegen.jobs import train_run
    from rqtoolkit.errors import ConfigError

    stages = {"1": (1,), "2": (2,), "both": (1, 2)}
    if stage not in stages:
        raise ConfigError(f"train: --stage={stage} is not known; got none of 1, 2, both. Use one.")
    overrides: dict[str, Any] = {}
    if data is not None:
        overrides["data.path"] = str(data.resolve())
    if seed is not None:
        overrides["seed"] = seed
    settings = load_config(config, overrides=overrides)
    with progress_bar() as progress:
        train_run(settings, out, stages=stages[stage], resume=resume, progress=progress)
    typer.echo(f"Trained: {out}")


@app.command()
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


@app.command()
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
        _show(metrics)
        typer.echo(f"Report: {run / 'report.html'}")


@app.command()
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


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Fixes the result to the bit.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tenth of the training: shows that it works.")
    ] = False,
) -> None:
    """Train on 1,797 handwritten digits, sample, evaluate, write report.html: about 6 minutes."""
    from imagegen.demo import run_demo

    with progress_bar() as progress:
        metrics = run_demo(out, seed=seed, quick=quick, progress=progress)
    _show(metrics)
    typer.echo(f"Report: {out / 'report.html'}")


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


def _show(metrics: dict[str, Any]) -> None:
    """Print the figures that a person looks at first."""
    rows = [
        ("relative error at depth 1, 2, …", "reconstruction_relative_error", "{:.2%}"),
        ("bits per code at depth 1, 2, …", "bits_per_code", "{:.2f}"),
        ("  of codes drawn by frequency", "unigram_bits_per_code", "{:.2f}"),
    ]
    for title, key, form in rows:
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
    if "seconds" in metrics:
        typer.echo(f"{'seconds':34} {metrics['seconds']:.0f}")
