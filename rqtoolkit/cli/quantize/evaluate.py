"""`rqtool quantize evaluate`: what a quantizer loses, how it uses codes, what a search finds."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rqtoolkit.cli.console import print_json, print_table, progress_bar
from rqtoolkit.cli.quantize import options as opt
from rqtoolkit.errors import ConfigError, DataError, ShapeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rqtoolkit.cli.quantize.streams import Encoder
    from rqtoolkit.functional.recall import Recall, RecallMeter
    from rqtoolkit.functional.streaming import RateDistortionSums
    from rqtoolkit.io.vectors import VectorTable
    from rqtoolkit.quantizers import Quantizer

__all__ = ["evaluate"]


def evaluate(
    model: opt.Model,
    data: opt.Data,
    queries: Annotated[
        Path | None, typer.Option(help="Vectors whose neighbours in DATA to search.")
    ] = None,
    recall: Annotated[
        str | None,
        typer.Option(help="Numbers of first results to look at.", show_default="1,10,100"),
    ] = None,
    metric: Annotated[
        opt.Metric | None, typer.Option(help="What the search ranks by.", show_default="both")
    ] = None,
    beam: opt.Beam = None,
    icm_rounds: opt.IcmRounds = 0,
    perturbations: opt.Perturbations = 0,
    threads: opt.Threads = None,
    device: opt.Device = "cpu",
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
    key: opt.Key = None,
    column: opt.Column = None,
) -> None:
    """Measure what a quantizer loses on vectors, and how it uses its codes.

    mse is the squared error summed over dimensions and averaged over vectors; relative_error is
    mse over that of the mean vector; entropy is in bits. With --queries, also the recall of an
    exhaustive search of the codes: 1-recall@k is the share of queries whose nearest neighbour is
    among the first k found, k-recall@k the share of the k nearest that are.
    """
    from rqtoolkit.cli.quantize.streams import Encoder, chunk_rows, load_quantizer
    from rqtoolkit.functional.rate_distortion import bits_per_vector
    from rqtoolkit.functional.threads import limited_threads
    from rqtoolkit.io.vectors import open_vectors

    if queries is None and (recall or metric):
        raise ConfigError("--recall and --metric need --queries: the vectors to search for.")
    vectors = open_vectors(data, key=key, column=column)
    quantizer = load_quantizer(model, vectors, device=opt.check_device(device))
    with limited_threads(threads), progress_bar() as progress:
        encoder = Encoder(
            quantizer,
            progress,
            beam=beam,
            icm_rounds=icm_rounds,
            perturbations=perturbations,
            seed=seed,
        )
        meter = None
        if queries is not None:
            same_file = {"key": key, "column": column} if queries.suffix == data.suffix else {}
            searched = open_vectors(queries, **same_file)
            ks = opt.numbers("--recall", recall or "1,10,100")
            meter = _meter(vectors, searched, ks, metric)
        chunks = vectors.chunks(chunk_rows(quantizer))
        sums, compressed = _measure(encoder, chunks, vectors.rows, meter)
    found = {} if meter is None else meter.result()
    bits = bits_per_vector(quantizer.codebook_sizes)
    if as_json:
        print_json(_report(quantizer, sums, bits, compressed, found))
    else:
        _print_levels(quantizer, sums)
        print(f"{bits:g} bits per vector, {sums.rows} vectors of dimension {quantizer.dim}")
        if compressed is not None:
            print(f"{compressed:.5g} bits per vector entropy-coded")
        if found:
            _print_recall(found)


def _meter(
    vectors: "VectorTable", queries: "VectorTable", ks: list[int], metric: opt.Metric | None
) -> "RecallMeter":
    from rqtoolkit.functional.recall import RecallMeter

    if queries.dim != vectors.dim:
        raise ShapeError(
            f"--queries={queries.path} has dimension {queries.dim} but {vectors.path} has "
            f"{vectors.dim}. Name queries of the same kind."
        )
    if vectors.rows < max(ks):
        raise DataError(
            f"--recall={max(ks)} needs at least as many vectors; got {vectors.rows} in "
            f"{vectors.path}. Ask for fewer."
        )
    metrics = [metric.value] if metric else [one.value for one in opt.Metric]
    return RecallMeter(queries.sample(queries.rows), ks=ks, metrics=metrics)


def _measure(
    encoder: "Encoder",
    chunks: "Iterator[NDArray[np.float32]]",
    rows: int,
    meter: "RecallMeter | None",
) -> "tuple[RateDistortionSums, float | None]":
    """Return the sums over all chunks, and the bits a vector of their codes, entropy-coded.

    The latter is the size of a file written in passing; None for codebooks too large for one.
    """
    from rqtoolkit.cli.quantize.streams import COMPRESSED, decoded, sums_of
    from rqtoolkit.functional.code_model import MOST_ENTRIES
    from rqtoolkit.io.compressed_codes import write_compressed

    quantizer = encoder.quantizer
    parts: list[RateDistortionSums] = []

    def measured_codes() -> "Iterator[NDArray[np.int64]]":
        for chunk, codes in encoder(chunks, rows):
            part = sums_of(quantizer, chunk, codes)
            parts[:] = [parts[0] + part] if parts else [part]
            if meter is not None:
                meter.add(chunk, decoded(quantizer, codes))
            yield codes

    if max(quantizer.codebook_sizes) > MOST_ENTRIES:
        for _ in measured_codes():
            pass
        return parts[0], None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"codes{COMPRESSED}"
        sizes = quantizer.codebook_sizes
        write_compressed(file, measured_codes(), rows=rows, codebook_sizes=sizes)
        return parts[0], 8 * file.stat().st_size / rows


def _report(
    quantizer: "Quantizer",
    sums: "RateDistortionSums",
    bits: float,
    compressed: float | None,
    found: "dict[str, Recall]",
) -> dict[str, Any]:
    report = {
        "rows": sums.rows,
        "dim": quantizer.dim,
        "depth": quantizer.depth,
        "codebook_sizes": quantizer.codebook_sizes,
        "mse": sums.mse[-1],
        "relative_error": sums.relative_error[-1],
        "bits_per_vector": bits,
        "compressed_bits_per_vector": compressed,
        "usage": sums.usage,
        "entropy": sums.entropy,
        "perplexity": sums.perplexity,
        "mse_by_depth": sums.mse,
        "relative_error_by_depth": sums.relative_error,
    }
    if found:
        report["recall"] = {
            name: {"1-recall": result.one_recall_at, "k-recall": result.k_recall_at}
            for name, result in found.items()
        }
    return report


def _print_levels(quantizer: "Quantizer", sums: "RateDistortionSums") -> None:
    """Print a row for each level, with the means over groups where there are several."""
    groups = len(quantizer.codebook_sizes) // quantizer.depth
    columns = [
        [sum(values[first : first + groups]) / groups for first in range(0, len(values), groups)]
        for values in (sums.usage, sums.entropy, sums.perplexity)
    ]
    print_table(
        ["depth", "codebook_size", "mse", "relative_error", "usage", "entropy", "perplexity"],
        list(
            zip(
                range(1, quantizer.depth + 1),
                quantizer.codebook_sizes[::groups],
                sums.mse,
                sums.relative_error,
                *columns,
                strict=True,
            )
        ),
    )


def _print_recall(found: "dict[str, Recall]") -> None:
    print_table(
        ["metric", "k", "1-recall@k", "k-recall@k"],
        [
            [name, k, result.one_recall_at[k], result.k_recall_at[k]]
            for name, result in found.items()
            for k in result.one_recall_at
        ],
    )
