"""`rqtool imagegen train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rqtoolkit.cli.console import message, progress_bar

__all__ = ["train"]


def train(
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or a shipped configuration, such as digits or imagenet256_480m.",
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
    init_from: Annotated[
        Path | None,
        typer.Option(help="A run, or one model of it, to start from in place of random weights."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as stage1.steps=1000."),
    ] = None,
) -> None:
    """Train both stages of a configuration in a run folder.

    Ctrl-C leaves a run that --resume takes up where it stopped, equal to the bit to one that was
    never interrupted. For several processes: torchrun --nproc-per-node 8 --no-python rqtool
    imagegen train ...
    """
    from imagegen.config import load_config, parse_settings
    from imagegen.jobs import train_run
    from rqtoolkit.errors import ConfigError

    stages = {"1": (1,), "2": (2,), "both": (1, 2)}
    if stage not in stages:
        raise ConfigError(f"train: --stage={stage} is not known; got none of 1, 2, both. Use one.")
    overrides: dict[str, Any] = parse_settings(settings or ())
    names = {key: f"train: --set {key}" for key in overrides}
    for option, key, value in (
        ("--data", "data.path", None if data is None else str(data.resolve())),
        ("--seed", "seed", seed),
        ("--init-from", "init_from", None if init_from is None else str(init_from)),
    ):
        if value is not None:
            overrides[key], names[key] = value, f"train: {option}"
    resolved = load_config(config, overrides=overrides, names=names)
    try:
        with progress_bar() as progress:
            run = train_run(resolved, out, stages=stages[stage], resume=resume, progress=progress)
    except KeyboardInterrupt:
        if (out / "config.yaml").exists():
            message("Stopped, and saved: go on with --resume.")
        raise
    if run.ranks.main:
        shared = f", by {run.ranks.size} processes" if run.ranks.size > 1 else ""
        typer.echo(f"Trained: {out}{shared}")
