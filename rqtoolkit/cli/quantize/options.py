"""Arguments and options that several commands of `quantize` share, and the checks of their text."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rqtoolkit.errors import ConfigError

__all__ = [
    "Beam",
    "Codes",
    "Column",
    "Data",
    "Device",
    "Epochs",
    "FitBeam",
    "Groups",
    "IcmRounds",
    "IdColumn",
    "Json",
    "Key",
    "LsqRounds",
    "Method",
    "MethodOption",
    "Metric",
    "Model",
    "NewCodes",
    "NewModel",
    "Packed",
    "Perturbations",
    "PrefixWeight",
    "Rotation",
    "RotationOption",
    "Seed",
    "Shared",
    "Starts",
    "Threads",
    "TimeBudget",
    "TrainRows",
    "check_device",
    "check_file",
    "level_sizes",
    "numbers",
]

_MOST_NUMBERS = 10_000


class Method(StrEnum):
    """Kinds of quantizer."""

    RESIDUAL = "residual"
    GROUPED = "grouped"
    RQVAE = "rqvae"
    NEURAL = "neural"


class Rotation(StrEnum):
    """Ways to turn vectors before they are cut into groups."""

    RANDOM = "random"
    PCA = "pca"
    OPQ = "opq"


class Metric(StrEnum):
    """What a search ranks by."""

    L2 = "l2"
    IP = "ip"


Data = Annotated[
    Path,
    typer.Argument(help="Vectors: .npy, .npz, .fvecs, .bvecs or .parquet.", show_default=False),
]
NewModel = Annotated[Path, typer.Option("--out", help="Quantizer to write, .safetensors.")]
NewCodes = Annotated[Path, typer.Option("--out", help="Codes to write, .npy or .parquet.")]
Model = Annotated[
    Path, typer.Argument(help="Quantizer written by `rqtool quantize fit`.", show_default=False)
]
Codes = Annotated[
    Path, typer.Argument(help="Codes: .npy, .npz, .parquet or .rqcodes.", show_default=False)
]
Key = Annotated[str | None, typer.Option(help="Array of an .npz; needed where it has several.")]
Column = Annotated[
    str | None, typer.Option(help="Parquet column of lists; needed where there are several.")
]
IdColumn = Annotated[
    str | None, typer.Option(help="Parquet column of ids to keep beside the rows.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Fixes the result.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads to work with.", show_default="all cores")
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")]
Packed = Annotated[
    bool, typer.Option("--packed", help="Codes are rows of packed bits, in faiss's layout.")
]

MethodOption = Annotated[Method, typer.Option(help="Kind of quantizer.")]
Groups = Annotated[
    int | None, typer.Option(min=1, help="Parts of a vector, each quantized alone (grouped).")
]
RotationOption = Annotated[
    Rotation | None, typer.Option(help="How vectors are turned before (grouped).")
]
TrainRows = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Rows to fit on, drawn at random.",
        show_default="1024 for each codeword; rqvae, neural: 4096",
    ),
]
Shared = Annotated[bool, typer.Option("--shared-codebook", help="One table for all levels.")]
# No number here stands for the library's own default, which options of other methods do not have.
LsqRounds = Annotated[
    int | None,
    typer.Option(min=0, help="Rounds of joint least squares, at most.", show_default="4"),
]
Starts = Annotated[
    int | None, typer.Option(min=1, help="Short k-means starts at each level.", show_default="1")
]
PrefixWeight = Annotated[
    float | None,
    typer.Option(
        help="Weight of the error of each shorter code beside the whole's.", show_default="0"
    ),
]
FitBeam = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Prefixes kept in encoding, here and with the model; 1 is greedy.",
        show_default="5; rqvae: 1; neural: 16",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Passes over the vectors, at most (rqvae, neural).",
        show_default="rqvae: 100; neural: 50",
    ),
]
TimeBudget = Annotated[
    float | None, typer.Option(help="Seconds after which no further round of a fit begins.")
]
Beam = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Prefixes kept in encoding; 1 is greedy.",
        show_default="as the model was fitted",
    ),
]
IcmRounds = Annotated[
    int, typer.Option(min=0, help="Sweeps over the levels after the beam, each a little better.")
]
Perturbations = Annotated[
    int, typer.Option(min=0, help="Rounds of changes by chance and sweeps, kept where better.")
]


def check_file(out: Path, *inputs: Path | None) -> Path:
    """Check before the work that `out` can be written and is none of the inputs."""
    from rqtoolkit.io.atomic import check_output

    check_output(out)
    for path in inputs:
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise ConfigError(f"--out={out} is also an input. Choose another name.")
    return out


def check_device(device: str) -> str:
    """Check that this machine can compute on a device that torch names so."""
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--device={device} cannot be used here; torch says: {reason} Name another, as in cpu."
        ) from error
    return device


def numbers(option: str, text: str) -> list[int]:
    """Read '256', '64,256' or '1-8', each number at least 1."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            span = range(int(first), int(last if dash else first) + 1)
            if len(span) > _MOST_NUMBERS:
                raise ConfigError(f"{option}={text} spans over {_MOST_NUMBERS} numbers.")
            found += span
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        found = []
    if not found or min(found) < 1:
        raise ConfigError(
            f"{option}={text} has to be whole numbers from 1 on, as in 8, 4,16 or 1-8."
        )
    return found


def level_sizes(text: str) -> int | list[int]:
    """Read --codebook-size as quantizers take it: one number for all levels, or one a level."""
    sizes = numbers("--codebook-size", text)
    return sizes if len(sizes) > 1 else sizes[0]
