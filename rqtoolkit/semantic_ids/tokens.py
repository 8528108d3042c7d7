"""Semantic IDs as text, and as tokens of one flat vocabulary."""

import re
import string
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqtoolkit.errors import ConfigError, DataError
from rqtoolkit.functional.arguments import check_count, shown
from rqtoolkit.semantic_ids.code_checks import check_codes, check_table

__all__ = [
    "STYLE",
    "flatten_codes",
    "format_tokens",
    "level_name",
    "level_tokens",
    "parse_tokens",
    "split_tokens",
    "token_offsets",
    "unflatten_codes",
]

STYLE = "<{level}_{code}>"
"""How a token is written: `{level}` is a, b, c, …, `{number}` the level from 0."""


def level_name(level: int) -> str:
    """Return the letter of a level counted from 0: a to z, then aa, ab, …"""
    name = ""
    while level >= 0:
        level, letter = divmod(level, 26)
        name, level = string.ascii_lowercase[letter] + name, level - 1
    return name


def level_tokens(codebook_sizes: Sequence[int], style: str = STYLE) -> list[list[str]]:
    """Return every token of every level, in the order of the codes.

    Args:
        codebook_sizes: Entries of each level.
        style: How a token is written, see `STYLE`.

    Raises:
        ConfigError: If style has an unknown field, no `{code}`, or nothing that tells levels apart.
    """
    _check_style(style)
    return [
        [_write(style, level, code) for code in range(size)]
        for level, size in enumerate(codebook_sizes)
    ]


def split_tokens(codes: ArrayLike, style: str = STYLE) -> list[list[str]]:
    """Return the tokens of each semantic ID.

    Args:
        codes: Shape (N, length), integers from 0 on.
        style: How a token is written, see `STYLE`.

    Returns:
        N lists of length tokens, such as `["<a_12>", "<b_7>", "<c_201>"]`.

    Raises:
        ShapeError: If codes do not have two axes.
        DataError: If they are no integers, or negative.
        ConfigError: As `level_tokens`.
    """
    _check_style(style)
    codes = check_table("split_tokens", codes)
    if codes.size and codes.min() < 0:
        raise DataError(
            f"split_tokens: codes have to be at least 0; got {codes.min()}. Leave out the rows of "
            "unknown items."
        )
    columns = []
    for level, column in enumerate(codes.T):
        values, places = np.unique(column, return_inverse=True)
        tokens = np.array([_write(style, level, code) for code in values.tolist()], object)
        columns.append(tokens[places])
    return np.stack(columns, 1).tolist() if columns else [[] for _ in codes]


def format_tokens(codes: ArrayLike, style: str = STYLE) -> list[str]:
    """Return each semantic ID as one string, such as `<a_12><b_7><c_201>`.

    Args and errors are those of `split_tokens`; `parse_tokens` inverts it.
    """
    return ["".join(tokens) for tokens in split_tokens(codes, style)]


def parse_tokens(
    texts: Sequence[str], length: int, style: str = STYLE, *, errors: str = "raise"
) -> NDArray[np.int64]:
    """Invert `format_tokens`.

    A text is the tokens of one semantic ID, level after level, and nothing else but white space
    before, between and after them, which tokenizers add when they decode.

    Args:
        texts: N of them.
        length: Codes of a semantic ID.
        style: How a token is written, see `STYLE`.
        errors: "raise", or "null": rows of -1 for texts that are no semantic ID.

    Returns:
        Codes, shape (N, length), int64.

    Raises:
        DataError: If a text is no semantic ID and errors is "raise".
        ConfigError: If errors is neither, or as `level_tokens`.
    """
    _check_style(style)
    _check_errors("parse_tokens", errors)
    check_count("parse_tokens", "length", length)
    pattern = re.compile(
        r"\s*" + r"\s*".join(_pattern(style, level) for level in range(length)) + r"\s*"
    )
    codes = np.full((len(texts), length), -1)
    for row, text in enumerate(texts):
        match = pattern.fullmatch(text)
        # Longer numbers than this fit no code, nor int64.
        if match and max(map(len, match.groups())) <= 18:
            codes[row] = [int(code) for code in match.groups()]
        elif errors == "raise":
            example = format_tokens(np.zeros((1, length), np.int64), style)[0]
            raise DataError(
                f"parse_tokens: text {row} has to be a semantic ID such as {example!r}; "
                f"got {shown(text)}. Pass errors='null' for a row of -1."
            )
    return codes


def token_offsets(codebook_sizes: Sequence[int], *, start: int = 0) -> NDArray[np.int64]:
    """Return the first token of each level, shape (length,), in one flat vocabulary.

    Args:
        codebook_sizes: Entries of each level.
        start: First token of the first level; those before are special.
    """
    return start + np.cumsum([0, *codebook_sizes[:-1]], dtype=np.int64)[: len(codebook_sizes)]


def flatten_codes(
    codes: ArrayLike, codebook_sizes: Sequence[int], *, start: int = 0
) -> NDArray[np.int64]:
    """Return tokens of one flat vocabulary, in which levels follow one another.

    Args:
        codes: Shape (N, length), integers in [0, codebook_size).
        codebook_sizes: Entries of each level.
        start: First token of the first level.

    Returns:
        Tokens, shape (N, length), int64: `token_offsets` added.

    Raises:
        ShapeError: If codes are not (N, length).
        DataError: If codes are no integers or out of range.
    """
    codes = check_codes("flatten_codes", codes, codebook_sizes).astype(np.int64)
    return codes + token_offsets(codebook_sizes, start=start)


def unflatten_codes(
    tokens: ArrayLike, codebook_sizes: Sequence[int], *, start: int = 0, errors: str = "raise"
) -> NDArray[np.int64]:
    """Invert `flatten_codes`.

    Args:
        tokens: Shape (N, length), integers.
        codebook_sizes: Entries of each level.
        start: First token of the first level.
        errors: "raise", or "null": rows of -1 where a token is not of its level.

    Returns:
        Codes, shape (N, length), int64.

    Raises:
        ShapeError: If tokens are not (N, length).
        DataError: If tokens are no integers, or one is not of its level and errors is "raise".
        ConfigError: If errors is neither.
    """
    _check_errors("unflatten_codes", errors)
    tokens = check_table("unflatten_codes", tokens, len(codebook_sizes)).astype(np.int64)
    codes = tokens - token_offsets(codebook_sizes, start=start)
    foreign = ((codes < 0) | (codes >= np.asarray(codebook_sizes))).any(axis=1)
    if foreign.any() and errors == "raise":
        row = int(np.flatnonzero(foreign)[0])
        raise DataError(
            f"unflatten_codes: tokens of each level have to follow its offset, "
            f"{token_offsets(codebook_sizes, start=start).tolist()}, for codebook sizes "
            f"{shown(tuple(codebook_sizes))}; got {tokens[row].tolist()} in row {row}. Check "
            "start and the sizes, or pass errors='null' for a row of -1."
        )
    codes[foreign] = -1
    return codes


def _write(style: str, level: int, code: int) -> str:
    return style.format(level=level_name(level), number=level, code=code)


def _pattern(style: str, level: int) -> str:
    """Return a regular expression of one level's tokens, the code its group."""
    before, after = (part.format(level=level_name(level), number=level) for part in _halves(style))
    return rf"{re.escape(before)}(\d+){re.escape(after)}"


def _halves(style: str) -> list[str]:
    return style.split("{code}")


def _check_style(style: str) -> None:
    """Refuse a style by which tokens cannot be told apart."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(style) if field is not None]
        written = _write(style, 0, 0)
    except (KeyError, IndexError, ValueError):
        fields, written = [], ""
    known = set(fields) <= {"level", "number", "code"} and len(set(fields)) > 1
    if not known or len(_halves(style)) != 2 or not written:
        raise ConfigError(
            f"tokens: style={style!r} has to hold {{code}} once, and {{level}} or {{number}}, "
            f"without further formatting; for example {STYLE!r}."
        )


def _check_errors(where: str, errors: str) -> None:
    if errors not in ("raise", "null"):
        raise ConfigError(f"{where}: errors={errors!r} must be 'raise' or 'null'.")
