"""`rqtool quantize sweep`: distortion over depth and codebook size."""

from pathlib import Path
from typing import Annotated

import typer

from rqtoolkit.cli.console import message, print_json, print_table, progress_bar
from rqtoolkit.cli.quantize import options as opt

__all__ = ["sweep"]


def sweep(
    data: opt.Data,
    out: Annotated[Path, typer.Option(help="Folder for results.json and rate_distortion.png.")],
    depths: Annotated[str, typer.Option(help="Depths to fit: 1-8, or 1,2,4.")] = "1-8",
    codebook_sizes: Annotated[str, typer.Option(help="Codebook sizes to fit: 64,256.")] = "256",
    method: opt.MethodOption = opt.Method.RESIDUAL,
    groups: opt.Groups = None,
    rotation: opt.RotationOption = None,
    shared_codebook: opt.Shared = False,
    train_rows: opt.TrainRows = None,
    lsq_rounds: opt.LsqRounds = None,
    starts: opt.Starts = None,
    beam: opt.FitBeam = None,
    prefix_weight: opt.PrefixWeight = None,
    epochs: opt.Epochs = None,
    time_budget: opt.TimeBudget = None,
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
    key: opt.Key = None,
    column: opt.Column = None,
) -> None:
    """Fit every depth with every codebook size, and compare what they lose."""
    from rqtoolkit.cli.quantize.curve import run_sweep
    from rqtoolkit.cli.quantize.training import check_options
    from rqtoolkit.functional.threads import limited_threads
    from rqtoolkit.io.vectors import open_vectors

    vectors = open_vectors(data, key=key, column=column)
    options = {
        "groups": groups,
        "rotation": rotation and rotation.value,
        "shared_codebook": shared_codebook,
        "rounds": lsq_rounds,
        "starts": starts,
        "beam": beam,
        "prefix_weight": prefix_weight,
        "epochs": epochs,
        "time_budget": time_budget,
    }
    with limited_threads(threads), progress_bar() as progress:
        results = run_sweep(
            vectors,
            depths=list(dict.fromkeys(opt.numbers("--depths", depths))),
            sizes=list(dict.fromkeys(opt.numbers("--codebook-sizes", codebook_sizes))),
            out=out,
            train_rows=train_rows,
            method=method.value,
            options=check_options(method.value, options),
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(results)
        return
    names = ["depth", "codebook_size", "bits_per_vector", "mse", "relative_error", "gaussian_mse"]
    print_table(names, [[result[name] for name in names] for result in results])
    message(f"Wrote {out}")
