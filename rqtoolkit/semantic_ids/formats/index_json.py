"""The JSON of LC-Rec, LETTER and MiniOneRec: a list of tokens an item, a letter a level."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rqtoolkit.errors import ArtifactError, DataError, ShapeError
from rqtoolkit.io.atomic import atomic_path
from rqtoolkit.io.parquet import unreadable
from rqtoolkit.semantic_ids.formats.item_codes import (
    ItemCodes,
    checked_codes,
    checked_items,
    existing_file,
)
from rqtoolkit.semantic_ids.items import as_item_ids, check_distinct

__all__ = ["read_index_json", "write_index_json"]

_TOKEN = re.compile(r"<([a-z])_(0|[1-9][0-9]*)>")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def read_index_json(path: str | Path, *, codebook_sizes: Sequence[int] | None = None) -> ItemCodes:
    """Read `{"0": ["<a_1>", "<b_7>", "<c_3>"], …}`, a letter a level.

    Item ids come back as integers if all of them are written as such.

    Args:
        path: The file, usually `NAME.index.json`.
        codebook_sizes: One number a level; the file does not say.

    Raises:
        ArtifactError: If the file is missing, unreadable or holds something else.
        ShapeError: If IDs differ in length among each other or from codebook_sizes.
        DataError: If tokens are out of order or codes out of range.

    References:
        `index/generate_indices.py` of RUCAIBox/LC-Rec (Zheng et al. 2024), `RQ-VAE/
        generate_indices.py` of HonghuiBao2000/LETTER (Wang et al. 2024), and AkaliKong/MiniOneRec
        write these files.
    """
    path = existing_file(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_pairs)
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if not isinstance(found, list) or not found or not all(map(_is_entry, found)):
        raise ArtifactError(
            f'{path} has to hold {{"0": ["<a_1>", "<b_2>", …], …}}, a list of strings an item. '
            "Name the .index.json file."
        )
    length = len(found[0][1])
    codes = np.empty((len(found), length), np.int64)
    for row, (item, tokens) in enumerate(found):
        if len(tokens) != length:
            raise ShapeError(
                f"{path}: IDs have to be of one length; got {length} tokens for item "
                f"{found[0][0]!r} and {len(tokens)} for {item!r}."
            )
        codes[row] = [_code(path, item, level, token) for level, token in enumerate(tokens)]
    keys = [item for item, _ in found]
    whole = all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", key) for key in keys)
    item_ids = as_item_ids(str(path), [int(key) for key in keys] if whole else keys)
    check_distinct(str(path), item_ids)
    return ItemCodes(item_ids, codes, checked_codes(str(path), codes, codebook_sizes))


def write_index_json(path: str | Path, item_ids: Any, codes: ArrayLike) -> None:
    """Write `{"0": ["<a_1>", "<b_7>", "<c_3>"], …}`, what `read_index_json` reads.

    Args:
        path: File to write.
        item_ids: Shape (N,), integers or strings.
        codes: Shape (N, length), length at most 26.

    Raises:
        ArtifactError: If the folder is missing.
        ShapeError: If ids and codes do not fit, or there are more levels than letters.
        DataError: If ids are not distinct.
    """
    item_ids, codes = checked_items("write_index_json", item_ids, codes)
    if codes.shape[1] > len(_LETTERS):
        raise ShapeError(
            f"write_index_json: the format has a letter a level, {len(_LETTERS)} at most; got "
            f"{codes.shape[1]} levels. Write Parquet."
        )
    letters = _LETTERS[: codes.shape[1]]
    index = {
        str(item): [f"<{letter}_{code}>" for letter, code in zip(letters, row, strict=True)]
        for item, row in zip(item_ids.tolist(), codes.tolist(), strict=True)
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")


def _pairs(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Keep the pairs of a JSON object as they come, twice the same key included."""
    return pairs


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, tuple)
        and isinstance(entry[1], list)
        and len(entry[1]) > 0
        and all(isinstance(token, str) for token in entry[1])
    )


def _code(path: Path, item: str, level: int, token: str) -> int:
    match = _TOKEN.fullmatch(token)
    letter = _LETTERS[level] if level < len(_LETTERS) else None
    if match is None or match[1] != letter:
        raise DataError(
            f"{path}: token {level} of an item has to be <{letter}_CODE>, with CODE from 0; got "
            f"{token!r} for item {item!r}."
        )
    return int(match[2])
