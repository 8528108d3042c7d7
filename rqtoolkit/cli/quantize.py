"""`rqtool quantize`: fit a quantizer on a file of vectors, encode, decode, evaluate, sweep."""

from pathlib import Path
from typing import Annotated

import typer

from rqtoolkit.cli.console import message, print_json, print_table, progress_bar
from rqtoolkit.errors import ConfigError

__all__ = ["app"]

_MOST_NUMBERS = 10_000

app = typer.Typer(help="Quantize files of vectors.", no_args_is_help=True)

_Data = Annotated[Path, typer.Argument(help="Vectors: .npy, .npz, .fvecs, .bvecs or .parquet.")]
_Model = Annotated[Path, typer.Argument(help="Quantizer written by `rqtool quantize fit`.")]
_Key = Annotated[str | None, typer.Option(help="Array of an .npz; needed where it has several.")]
_Column = Annotated[
    str | None, typer.Option(help="Parquet column of lists; needed where there are several.")
]
_IdColumn = Annotated[
    str | None, typer.Option(help="Parquet column of ids to keep beside the rows.")
]
_Shared = Annotated[bool, typer.Option("--shared-codebook", help="One table for all levels.")]
_Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Fixes the result.")]
_TrainRows = Annotated[
    int | None,
    typer.Option(
        min=1, help="Rows to fit on, drawn at random.", show_default="1024 for each codeword"
    ),
]
_Rounds = Annotated[int, typer.Option(min=0, help="Rounds of joint least squares.")]
_Starts = Annotated[int, typer.Option(min=1, help="Short k-means starts at each level.")]
_Beam = Annotated[
    int,
    typer.Option(min=1, help="Prefixes kept in encoding, here and with the model; 1 is greedy."),
]


@app.command()
def fit(
    data: _Data,
    depth: Annotated[int, typer.Option(min=1, help="Number of residual levels.")],
    codebook_size: Annotated[str, typer.Option(help="Entries of each level: 256, or 256,64,64.")],
    out: Annotated[Path, typer.Option(help="Quantizer to write, .safetensors.")],
    shared_codebook: _Shared = False,
    train_rows: _TrainRows = None,
    rounds: _Rounds = 4,
    starts: _Starts = 3,
    beam: _Beam = 4,
    seed: _Seed = 0,
    key: _Key = None,
    column: _Column = None,
) -> None:
    """Fit a quantizer on vectors and write it."""
    from rqtoolkit.cli.work import chunk_rows, fit_quantizer, measure, row_chunks, training_rows
    from rqtoolkit.functional.rate_distortion import bits_per_vector
    from rqtoolkit.io.tables import check_suffix
    from rqtoolkit.io.vectors import open_vectors

    check_suffix(_output(out, data), (".safetensors",))
    sizes = _numbers("--codebook-size", codebook_size)
    vectors = open_vectors(data, key=key, column=column)
    x = training_rows(vectors, max(sizes), train_rows, seed)
    with progress_bar() as progress:
        quantizer = fit_quantizer(
            x,
            depth,
            sizes if len(sizes) > 1 else sizes[0],
            shared_codebook=shared_codebook,
            rounds=rounds,
            starts=starts,
            beam=beam,
            seed=seed,
            progress=progress,
        )
        quantizer.save(out)
        sums = measure(quantizer, row_chunks(x, chunk_rows(quantizer)), len(x), progress)
    bits = bits_per_vector(quantizer.codebook_sizes)
    print_table(
        ["mse", "relative_error", "bits_per_vector", "rows"],
        [[sums.mse[-1], sums.relative_error[-1], bits, sums.rows]],
    )
    message(f"Wrote {out}")


@app.command()
def encode(
    model: _Model,
    data: _Data,
    out: Annotated[Path, typer.Option(help="Codes to write, .npy or .parquet.")],
    key: _Key = None,
    column: _Column = None,
    id_column: _IdColumn = None,
) -> None:
    """Write the codes of vectors."""
    from rqtoolkit.cli.work import chunk_rows, encode_chunks, load_quantizer
    from rqtoolkit.io.codes import write_codes
    from rqtoolkit.io.vectors import open_vectors

    _output(out, model, data)
    vectors = open_vectors(data, key=key, column=column, id_column=id_column)
    quantizer = load_quantizer(model, vectors)
    chunks = vectors.chunks(chunk_rows(quantizer))
    with progress_bar() as progress:
        write_codes(
            out,
            (codes for _, codes in encode_chunks(quantizer, chunks, vectors.rows, progress)),
            rows=vectors.rows,
            codebook_sizes=quantizer.codebook_sizes,
            ids=vectors.ids,
            id_column=id_column or "id",
        )
    message(f"Wrote {out}")


@app.command()
def decode(
    model: _Model,
    codes: Annotated[Path, typer.Argument(help="Codes: .npy, .npz or .parquet.")],
    out: Annotated[Path, typer.Option(help="Vectors to write, .npy or .parquet.")],
    key: _Key = None,
    column: _Column = None,
    id_column: _IdColumn = None,
) -> None:
    """Write the vectors that codes stand for; codes of the first levels alone will do."""
    from rqtoolkit.cli.work import chunk_rows, decode_chunks, load_quantizer
    from rqtoolkit.io.codes import open_codes
    from rqtoolkit.io.vectors import write_vectors

    _output(out, model, codes)
    quantizer = load_quantizer(model)
    sizes = quantizer.codebook_sizes
    table = open_codes(codes, codebook_sizes=sizes, key=key, column=column, id_column=id_column)
    chunks = table.chunks(chunk_rows(quantizer))
    with progress_bar() as progress:
        write_vectors(
            out,
            decode_chunks(quantizer, chunks, table.rows, progress),
            rows=table.rows,
            dim=quantizer.dim,
            ids=table.ids,
            id_column=id_column or "id",
        )
    message(f"Wrote {out}")


@app.command()
def evaluate(
    model: _Model,
    data: _Data,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    key: _Key = None,
    column: _Column = None,
) -> None:
    """Measure what a quantizer loses on vectors, and how it uses its codes.

    mse is the squared error summed over dimensions and averaged over vectors; relative_error is
    mse over that of the mean vector; entropy is in bits.
    """
    from rqtoolkit.cli.work import chunk_rows, load_quantizer, measure
    from rqtoolkit.functional.rate_distortion import bits_per_vector
    from rqtoolkit.io.vectors import open_vectors

    vectors = open_vectors(data, key=key, column=column)
    quantizer = load_quantizer(model, vectors)
    bits = bits_per_vector(quantizer.codebook_sizes)
    with progress_bar() as progress:
        sums = measure(quantizer, vectors.chunks(chunk_rows(quantizer)), vectors.rows, progress)
    if as_json:
        print_json(
            {
                "rows": sums.rows,
                "dim": quantizer.dim,
                "depth": quantizer.depth,
                "codebook_sizes": quantizer.codebook_sizes,
                "mse": sums.mse[-1],
                "relative_error": sums.relative_error[-1],
                "bits_per_vector": bits,
                "usage": sums.usage,
                "entropy": sums.entropy,
                "perplexity": sums.perplexity,
                "mse_by_depth": sums.mse,
                "relative_error_by_depth": sums.relative_error,
            }
        )
        return
    levels = zip(
        range(1, quantizer.depth + 1),
        quantizer.codebook_sizes,
        sums.mse,
        sums.relative_error,
        sums.usage,
        sums.entropy,
        sums.perplexity,
        strict=True,
    )
    print_table(
        ["depth", "codebook_size", "mse", "relative_error", "usage", "entropy", "perplexity"],
        list(levels),
    )
    print(f"{bits:g} bits per vector, {sums.rows} vectors of dimension {quantizer.dim}")


@app.command()
def sweep(
    data: _Data,
    out: Annotated[Path, typer.Option(help="Folder for results.json and rate_distortion.png.")],
    depths: Annotated[str, typer.Option(help="Depths to fit: 1-8, or 1,2,4.")] = "1-8",
    codebook_sizes: Annotated[str, typer.Option(help="Codebook sizes to fit: 64,256.")] = "256",
    shared_codebook: _Shared = False,
    train_rows: _TrainRows = None,
    rounds: _Rounds = 4,
    starts: _Starts = 3,
    beam: _Beam = 4,
    seed: _Seed = 0,
    key: _Key = None,
    column: _Column = None,
) -> None:
    """Fit every depth with every codebook size, and compare what they lose."""
    from rqtoolkit.cli.sweep import run_sweep
    from rqtoolkit.io.vectors import open_vectors

    vectors = open_vectors(data, key=key, column=column)
    with progress_bar() as progress:
        results = run_sweep(
            vectors,
            depths=list(dict.fromkeys(_numbers("--depths", depths))),
            sizes=list(dict.fromkeys(_numbers("--codebook-sizes", codebook_sizes))),
            out=out,
            progress=progress,
            shared_codebook=shared_codebook,
            train_rows=train_rows,
            rounds=rounds,
            starts=starts,
            beam=beam,
            seed=seed,
        )
    names = ["depth", "codebook_size", "bits_per_vector", "mse", "relative_error", "gaussian_mse"]
    print_table(names, [[result[name] for name in names] for result in results])
    message(f"Wrote {out}")


def _output(out: Path, *inputs: Path) -> Path:
    """Check before the work that `out` can be written and is none of the inputs."""
    from rqtoolkit.io.atomic import check_output

    check_output(out)
    if any(out.exists() and path.exists() and out.samefile(path) for path in inputs):
        raise ConfigError(f"--out={out} is also an input. Choose another name.")
    return out


def _numbers(option: str, text: str) -> list[int]:
    """Read '256', '64,256' or '1-8', each number at least 1."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            span = range(int(first), int(last if dash else first) + 1)
            if len(span) > _MOST_NUMBERS:
                raise ConfigError(f"{option}={text} spans over {_MOST_NUMBERS} numbers.")
            numbers += span
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(
            f"{option}={text} has to be whole numbers from 1 on, as in 256, 64,256 or 1-8."
        )
    return numbers
