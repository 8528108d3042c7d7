"""`rqtool quantize export` and `import`: quantizers and codes as faiss indexes."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rqtoolkit.cli.console import message, print_figures, print_json, print_table, progress_bar
from rqtoolkit.cli.quantize import options as opt
from rqtoolkit.errors import ConfigError

if TYPE_CHECKING:
    from rqtoolkit.cli.quantize.filling import Source
    from rqtoolkit.quantizers import Quantizer

__all__ = ["export_command", "import_command"]


class Target(StrEnum):
    """What a quantizer can be exported to."""

    FAISS = "faiss"


def export_command(
    model: opt.Model,
    out: Annotated[Path, typer.Option(help="Index to write.")],
    to: Annotated[Target, typer.Option(help="Whose format.")] = Target.FAISS,
    vectors: Annotated[
        Path | None, typer.Option(help="Vectors to encode and add to the index.")
    ] = None,
    codes: Annotated[Path | None, typer.Option(help="Codes to add to the index.")] = None,
    metric: Annotated[opt.Metric, typer.Option(help="What a search ranks by.")] = opt.Metric.L2,
    norms: Annotated[
        bool, typer.Option("--norms", help="Four bytes more a vector: l2 searches by table.")
    ] = False,
    lists: Annotated[
        int | None, typer.Option(min=1, help="Lists of an inverted file.", show_default="none")
    ] = None,
    packed: opt.Packed = False,
    beam: opt.Beam = None,
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
    key: opt.Key = None,
    column: opt.Column = None,
) -> None:
    """Write a quantizer, perhaps with vectors or codes, as an index ready to search.

    Vectors and codes are numbered from 0 in the order of their file.
    """
    from rqtoolkit.cli.quantize.filling import empty_index, fill_index
    from rqtoolkit.cli.quantize.streams import Encoder, load_quantizer
    from rqtoolkit.functional.threads import limited_threads
    from rqtoolkit.io.faiss_index import write_index

    opt.check_file(out, model, vectors, codes)
    if beam is not None and vectors is None:
        raise ConfigError("--beam is for --vectors, which are encoded. Leave it out.")
    if norms and metric is opt.Metric.IP:
        raise ConfigError("--norms serves --metric l2 alone. Leave it out for ip.")
    quantizer = load_quantizer(model)
    if not hasattr(quantizer, "to_faiss"):
        raise ConfigError(
            f"{model} holds a {type(quantizer).__name__}; {to.value} has no index of that kind."
        )
    source = _source(quantizer, vectors, codes, packed=packed, key=key, column=column)
    with limited_threads(threads), progress_bar() as progress:
        encoder = Encoder(quantizer, progress, beam=beam)
        settings = {"metric": metric.value, "norms": norms}
        index = empty_index(quantizer, source, lists=lists, seed=seed, **settings)
        if source is not None:
            fill_index(index, source, encoder, progress)
        write_index(out, index)
    figures = {"index": type(index).__name__, "rows": index.ntotal, "bytes": out.stat().st_size}
    print_figures(figures, as_json=as_json, wrote=out)


def import_command(
    index: Annotated[
        Path, typer.Argument(help="Residual quantizer that faiss wrote.", show_default=False)
    ],
    out: opt.NewModel,
    as_json: opt.Json = False,
) -> None:
    """Read the quantizer of a faiss index; the vectors in it stay there."""
    from rqtoolkit.functional.rate_distortion import bits_per_vector
    from rqtoolkit.io.tables import check_suffix
    from rqtoolkit.quantizers import ResidualQuantizer

    check_suffix(opt.check_file(out, index), (".safetensors",))
    quantizer = ResidualQuantizer.from_faiss(index)
    quantizer.save(out)
    figures = {
        "dim": quantizer.dim,
        "depth": quantizer.depth,
        "codebook_sizes": quantizer.codebook_sizes,
        "beam": quantizer.beam,
        "bits_per_vector": bits_per_vector(quantizer.codebook_sizes),
    }
    if as_json:
        print_json(figures)
        return
    sizes = ",".join(map(str, quantizer.codebook_sizes))
    print_table(list(figures), [list((figures | {"codebook_sizes": sizes}).values())])
    message(f"Wrote {out}")


def _source(
    quantizer: "Quantizer",
    vectors: Path | None,
    codes: Path | None,
    *,
    packed: bool,
    key: str | None,
    column: str | None,
) -> "Source | None":
    """Open what is to be added to an index."""
    from rqtoolkit.cli.quantize.streams import check_dim, open_code_file
    from rqtoolkit.io.vectors import open_vectors

    if vectors is not None and codes is not None:
        raise ConfigError("--vectors and --codes name what to add in two ways. Leave one out.")
    if codes is not None:
        return open_code_file(codes, quantizer, packed=packed, key=key, column=column)
    for option, value in {"--packed": packed, "--key": key, "--column": column}.items():
        if value and (packed or vectors is None):
            raise ConfigError(f"{option} tells how to read --codes or --vectors. Leave it out.")
    if vectors is None:
        return None
    table = open_vectors(vectors, key=key, column=column)
    check_dim(quantizer, table)
    return table
