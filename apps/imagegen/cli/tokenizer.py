"""`rqtool imagegen tokenizer`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["tokenizer"]


def tokenizer(
    texts: Annotated[
        Path,
        typer.Argument(
            help="Texts to learn from: a text a line, or a list of images with captions. Or a "
            "folder with the vocab.json and merges.txt of a released model, to convert.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="tokenizer.json to write.", show_default=False)],
    vocabulary: Annotated[int, typer.Option(help="Tokens at most.")] = 16384,
    length: Annotated[int, typer.Option(help="Tokens of each text.")] = 32,
) -> None:
    """Train a tokenizer on texts, for models that are told texts.

    Name it in data.tokenizer of a configuration.
    """
    from imagegen.text import load_tokenizer, read_texts, train_tokenizer
    from rqtoolkit.io.atomic import check_output

    check_output(out)
    if texts.is_dir():
        made = load_tokenizer(texts, length=length)
    else:
        made = train_tokenizer(read_texts(texts), vocabulary=vocabulary, length=length)
    made.save(out)
    typer.echo(f"{made.vocabulary} tokens, {made.length} a text: {out}")
