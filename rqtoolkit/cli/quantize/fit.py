"""`rqtool quantize fit`: train a quantizer on a file of vectors."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rqtoolkit.cli.console import message, print_json, print_table, progress_bar
from rqtoolkit.cli.quantize import options as opt
from rqtoolkit.errors import ConfigError

if TYPE_CHECKING:
    from rqtoolkit.functional.streaming import RateDistortionSums

__all__ = ["fit"]

_CHECKED_ROWS = 2**14


def fit(
    data: opt.Data,
    out: opt.NewModel,
    depth: Annotated[int | None, typer.Option(min=1, help="Number of residual levels.")] = None,
    codebook_size: Annotated[
        str | None, typer.Option(help="Entries of each level: 256, or 256,64,64.")
    ] = None,
    method: Annotated[
        opt.Method | None, typer.Option(help="Kind of quantizer.", show_default="residual")
    ] = None,
    groups: opt.Groups = None,
    rotation: opt.RotationOption = None,
    shared_codebook: opt.Shared = False,
    train_rows: opt.TrainRows = None,
    lsq_rounds: opt.LsqRounds = None,
    starts: opt.Starts = None,
    beam: opt.FitBeam = None,
    prefix_weight: opt.PrefixWeight = None,
    rate_weight: Annotated[
        float | None,
        typer.Option(help="Squared error that one bit of entropy-coded code may cost."),
    ] = None,
    target_bits: Annotated[
        float | None, typer.Option(help="Bits a vector to reach, entropy-coded.")
    ] = None,
    epochs: opt.Epochs = None,
    time_budget: opt.TimeBudget = None,
    warm_start: Annotated[
        Path | None, typer.Option(help="Quantizer to go on from; it brings depth and sizes.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Further vectors, to measure the quantizer on.")
    ] = None,
    threads: opt.Threads = None,
    device: opt.Device = "cpu",
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
    key: opt.Key = None,
    column: opt.Column = None,
) -> None:
    """Fit a quantizer on vectors and write it."""
    from rqtoolkit.cli.quantize.streams import Encoder, chunk_rows, measure, row_chunks
    from rqtoolkit.cli.quantize.training import (
        check_options,
        fit_quantizer,
        load_start,
        training_rows,
    )
    from rqtoolkit.functional.rate_distortion import bits_per_vector
    from rqtoolkit.functional.threads import limited_threads
    from rqtoolkit.io.tables import check_suffix
    from rqtoolkit.io.vectors import open_vectors

    check_suffix(opt.check_file(out, data, held_out), (".safetensors",))
    given = {
        "groups": groups,
        "rotation": rotation and rotation.value,
        "shared_codebook": shared_codebook,
        "rounds": lsq_rounds,
        "starts": starts,
        "beam": beam,
        "prefix_weight": prefix_weight,
        "rate_weight": rate_weight,
        "target_bits": target_bits,
        "epochs": epochs,
        "time_budget": time_budget,
    }
    vectors = open_vectors(data, key=key, column=column)
    others = None if held_out is None else open_vectors(held_out, key=key, column=column)
    if others is not None and others.dim != vectors.dim:
        raise ConfigError(
            f"--held-out={held_out} has dimension {others.dim}, {data} {vectors.dim}."
        )
    with limited_threads(threads), progress_bar() as progress:
        if others is not None:  # bad values are to be found before the fit, not after
            for _ in others.chunks(_CHECKED_ROWS):
                pass
        if warm_start is None:
            kind = (method or opt.Method.RESIDUAL).value
            options = check_options(kind, given)
            if depth is None or codebook_size is None:
                raise ConfigError("fit needs --depth and --codebook-size, or --warm-start.")
            largest = max(opt.numbers("--codebook-size", codebook_size))
            x = training_rows(vectors, largest, train_rows, method=kind, seed=seed)
            start = time.perf_counter()
            quantizer = fit_quantizer(
                x,
                depth,
                opt.level_sizes(codebook_size),
                method=kind,
                options=options,
                seed=seed,
                device=opt.check_device(device),
                progress=progress,
            )
        else:
            shape = {"method": method, "depth": depth, "codebook_size": codebook_size}
            quantizer, kind, options = load_start(
                warm_start, vectors, given | shape, device=opt.check_device(device)
            )
            largest = max(quantizer.codebook_sizes)
            x = training_rows(vectors, largest, train_rows, method=kind, seed=seed)
            start = time.perf_counter()
            quantizer.fit(
                x, **options, warm_start=True, max_rows=len(x), seed=seed, progress=progress
            )
        seconds = time.perf_counter() - start
        quantizer.save(out)
        encoder, rows = Encoder(quantizer, progress), chunk_rows(quantizer)
        measured = {"training": measure(encoder, row_chunks(x, rows), len(x))}
        if others is not None:
            measured["held_out"] = measure(encoder, others.chunks(rows), others.rows)
    figures = {name: _figures(sums) for name, sums in measured.items()}
    bits = bits_per_vector(quantizer.codebook_sizes)
    if as_json:
        print_json({**figures, "bits_per_vector": bits, "seconds": seconds})
        return
    print_table(
        ["data", "rows", "mse", "relative_error", "entropy", "bits_per_vector", "seconds"],
        [[name, *row.values(), bits, seconds] for name, row in figures.items()],
    )
    message(f"Wrote {out}")


def _figures(sums: "RateDistortionSums") -> dict[str, Any]:
    return {
        "rows": sums.rows,
        "mse": sums.mse[-1],
        "relative_error": sums.relative_error[-1],
        "entropy": sum(sums.entropy),
    }
