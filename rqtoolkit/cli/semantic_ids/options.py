"""Arguments and options that several commands of `semantic-ids` share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rqtoolkit.cli.quantize.options import (
    Column,
    Device,
    Json,
    Key,
    Seed,
    Threads,
    check_device,
    check_file,
    level_sizes,
    numbers,
)

__all__ = [
    "CodebookSize",
    "Collisions",
    "CollisionsOption",
    "Column",
    "Data",
    "Device",
    "Encoder",
    "Folder",
    "Format",
    "IdColumn",
    "Ids",
    "IdsFile",
    "ItemColumn",
    "Json",
    "KeepSeen",
    "Key",
    "Method",
    "NewFolder",
    "Recommender",
    "Seed",
    "Settings",
    "SkipUnknown",
    "Split",
    "Style",
    "Threads",
    "TimeColumn",
    "UserColumn",
    "check_device",
    "check_file",
    "level_sizes",
    "numbers",
]


class Method(StrEnum):
    """Kinds of codebooks."""

    RESIDUAL = "residual"
    RQVAE = "rqvae"
    NEURAL = "neural"


class Collisions(StrEnum):
    """What becomes of items that would have equal codes."""

    MATCH = "match"
    TOKEN = "token"
    ALLOW = "allow"


class Format(StrEnum):
    """Files of items and codes."""

    LC_REC = "lc-rec"
    GRID = "grid"
    TORCH_EASY_REC = "torch-easy-rec"
    TOKENS = "tokens"
    CSV = "csv"
    PARQUET = "parquet"


class Split(StrEnum):
    """Which interaction of each user is to be predicted."""

    TEST = "test"
    VALIDATION = "validation"


Data = Annotated[
    Path,
    typer.Argument(
        help="A vector an item: .npy, .npz, .fvecs, .bvecs or .parquet.", show_default=False
    ),
]
Folder = Annotated[Path, typer.Argument(help="Folder of semantic IDs.", show_default=False)]
NewFolder = Annotated[Path, typer.Option("--out", help="Folder to write; has to be new.")]
Recommender = Annotated[
    Path,
    typer.Argument(help="Recommender written by `rqtool semantic-ids train`.", show_default=False),
]
Ids = Annotated[
    Path | None,
    typer.Option(help="Ids of the rows: a text file with one a line, .npy or .parquet."),
]
IdsFile = Annotated[
    Path | None,
    typer.Option("--file", help="More of them: a text file with one a line, .npy or .parquet."),
]
IdColumn = Annotated[str | None, typer.Option(help="Parquet column of item ids.")]
Encoder = Annotated[
    str | None, typer.Option(help="Name of the model that made the vectors; kept and checked.")
]
CollisionsOption = Annotated[
    Collisions, typer.Option(help="What becomes of items that would have equal codes.")
]
CodebookSize = Annotated[str, typer.Option(help="Entries of each level: 256, or 256,64,64.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Argument of the quantizer or its fit: rounds=8. Repeatable."),
]
Style = Annotated[
    str | None,
    typer.Option(
        help="How a token is written (tokens): {level} is a letter, {number} from 0.",
        show_default="<{level}_{code}>",
    ),
]
UserColumn = Annotated[
    str | None, typer.Option(help="Parquet column of users.", show_default="user")
]
ItemColumn = Annotated[
    str | None, typer.Option(help="Parquet column of items.", show_default="item")
]
TimeColumn = Annotated[
    str | None,
    typer.Option(
        help="Parquet column to order by; '' where rows are in order.", show_default="timestamp"
    ),
]
KeepSeen = Annotated[
    bool, typer.Option("--keep-seen", help="Do not leave out what a user has had.")
]
SkipUnknown = Annotated[
    bool,
    typer.Option("--skip-unknown", help="Leave out interactions with items without semantic ID."),
]
