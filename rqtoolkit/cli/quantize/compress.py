"""`rqtool quantize compress` and `decompress`: files of codes as few bytes as a model allows."""

from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rqtoolkit.cli.console import message, print_figures, progress_bar
from rqtoolkit.cli.quantize import options as opt
from rqtoolkit.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rqtoolkit.functional.progress import Progress

__all__ = ["compress", "decompress"]

_ROWS = 2**17


def compress(
    codes: opt.Codes,
    out: Annotated[Path, typer.Option(help="File to write, .rqcodes.")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Quantizer that made the codes; tells the codebook sizes.",
            show_default="the largest code of each level tells",
        ),
    ] = None,
    packed: opt.Packed = False,
    as_json: opt.Json = False,
    key: opt.Key = None,
    column: opt.Column = None,
) -> None:
    """Write codes entropy-coded; `decompress` brings them back exactly. Ids are not kept."""
    from rqtoolkit.cli.quantize.streams import COMPRESSED, load_quantizer, open_code_file
    from rqtoolkit.functional.rate_distortion import bits_per_vector
    from rqtoolkit.io.compressed_codes import write_compressed
    from rqtoolkit.io.tables import check_suffix

    check_suffix(opt.check_file(out, codes, model), (COMPRESSED,))
    if packed and model is None:
        raise ConfigError("--packed needs --model: packed rows do not tell the codebook sizes.")
    quantizer = None if model is None else load_quantizer(model)
    table = open_code_file(codes, quantizer, packed=packed, key=key, column=column)
    with progress_bar() as progress:
        if quantizer is not None:
            sizes = list(quantizer.codebook_sizes[: table.depth])
        else:
            sizes = _smallest_sizes(_told(table.chunks(_ROWS), "read", table.rows, progress))
        bits = write_compressed(
            out,
            _told(table.chunks(_ROWS), "compress", table.rows, progress),
            rows=table.rows,
            codebook_sizes=sizes,
        )
    size = out.stat().st_size
    figures = {
        "rows": table.rows,
        "bytes": size,
        "bits_per_vector": 8 * size / table.rows,
        "model_entropy": bits / table.rows,
        "fixed_length_bits": float(bits_per_vector(sizes)),
    }
    print_figures(figures, as_json=as_json, wrote=out)


def decompress(
    file: Annotated[Path, typer.Argument(help="What `compress` wrote.", show_default=False)],
    out: opt.NewCodes,
    packed: opt.Packed = False,
) -> None:
    """Write the codes of a compressed file."""
    from rqtoolkit.io.codes import write_codes
    from rqtoolkit.io.compressed_codes import open_compressed

    opt.check_file(out, file)
    table = open_compressed(file)
    with progress_bar() as progress:
        write_codes(
            out,
            _told(table.chunks(_ROWS), "decompress", table.rows, progress),
            rows=table.rows,
            codebook_sizes=table.codebook_sizes,
            packed=packed,
        )
    message(f"Wrote {out}")


def _told(
    chunks: "Iterable[NDArray[np.int64]]", name: str, rows: int, progress: "Progress"
) -> "Iterator[NDArray[np.int64]]":
    """Yield chunks, and tell the progress of each."""
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        progress(name, done, rows)


def _smallest_sizes(chunks: "Iterable[NDArray[np.int64]]") -> list[int]:
    """Return the smallest codebook sizes that codes may have been chosen from."""
    largest = reduce(lambda a, b: a.clip(b), (chunk.max(axis=0) for chunk in chunks))
    return [int(code) + 1 for code in largest]
