"""`rqtool quantize encode` and `decode`: files of vectors to files of codes and back."""

from pathlib import Path
from typing import Annotated

import typer

from rqtoolkit.cli.console import message, print_figures, progress_bar
from rqtoolkit.cli.quantize import options as opt

__all__ = ["decode", "encode"]


def encode(
    model: opt.Model,
    data: opt.Data,
    out: opt.NewCodes,
    beam: opt.Beam = None,
    icm_rounds: opt.IcmRounds = 0,
    perturbations: opt.Perturbations = 0,
    packed: opt.Packed = False,
    threads: opt.Threads = None,
    device: opt.Device = "cpu",
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
    key: opt.Key = None,
    column: opt.Column = None,
    id_column: opt.IdColumn = None,
) -> None:
    """Write the codes of vectors, and say how fast that was.

    share_of_gemm is the speed beside that of a bare float32 matrix product of the vectors with all
    codewords, measured here with the same threads.
    """
    from rqtoolkit.cli.quantize.streams import Encoder, chunk_rows, load_quantizer
    from rqtoolkit.cli.quantize.throughput import gemm_rate
    from rqtoolkit.functional.threads import limited_threads
    from rqtoolkit.io.codes import write_codes
    from rqtoolkit.io.vectors import open_vectors

    opt.check_file(out, model, data)
    vectors = open_vectors(data, key=key, column=column, id_column=id_column)
    quantizer = load_quantizer(model, vectors, device=opt.check_device(device))
    sizes = quantizer.codebook_sizes
    with limited_threads(threads), progress_bar() as progress:
        encoder = Encoder(
            quantizer,
            progress,
            beam=beam,
            icm_rounds=icm_rounds,
            perturbations=perturbations,
            seed=seed,
        )
        chunks = vectors.chunks(chunk_rows(quantizer))
        write_codes(
            out,
            (codes for _, codes in encoder(chunks, vectors.rows)),
            rows=vectors.rows,
            codebook_sizes=sizes,
            packed=packed,
            ids=vectors.ids,
            id_column=id_column or "id",
        )
        # Codewords of a group are as many times shorter as there are groups.
        codewords = sum(sizes) * quantizer.depth // len(sizes)
        bare = gemm_rate(quantizer.dim, codewords, device=device)
    speed = encoder.rows / encoder.seconds
    figures = {
        "rows": encoder.rows,
        "seconds": encoder.seconds,
        "vectors_per_second": speed,
        "share_of_gemm": speed / bare,
    }
    print_figures(figures, as_json=as_json, wrote=out)


def decode(
    model: opt.Model,
    codes: opt.Codes,
    out: Annotated[Path, typer.Option(help="Vectors to write, .npy or .parquet.")],
    packed: opt.Packed = False,
    threads: opt.Threads = None,
    device: opt.Device = "cpu",
    key: opt.Key = None,
    column: opt.Column = None,
    id_column: opt.IdColumn = None,
) -> None:
    """Write the vectors that codes stand for; codes of the first levels alone will do."""
    from rqtoolkit.cli.quantize.streams import (
        chunk_rows,
        decode_chunks,
        load_quantizer,
        open_code_file,
    )
    from rqtoolkit.functional.threads import limited_threads
    from rqtoolkit.io.vectors import write_vectors

    opt.check_file(out, model, codes)
    quantizer = load_quantizer(model, device=opt.check_device(device))
    table = open_code_file(
        codes, quantizer, packed=packed, key=key, column=column, id_column=id_column
    )
    chunks = table.chunks(chunk_rows(quantizer))
    with limited_threads(threads), progress_bar() as progress:
        write_vectors(
            out,
            decode_chunks(quantizer, chunks, table.rows, progress),
            rows=table.rows,
            dim=quantizer.dim,
            ids=table.ids,
            id_column=id_column or "id",
        )
    message(f"Wrote {out}")
