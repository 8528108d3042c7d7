"""What the manifest of a folder of semantic IDs says, checked before anything is made of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from rqtoolkit.errors import ArtifactError
from rqtoolkit.functional.arguments import shown
from rqtoolkit.semantic_ids.collisions import Collisions

__all__ = ["CODEBOOKS", "FORMAT", "FORMAT_VERSION", "IDS", "MANIFEST", "RETIRED", "read_manifest"]

FORMAT, FORMAT_VERSION = "rqtoolkit semantic ids", 1
MANIFEST, CODEBOOKS = "manifest.json", "codebooks.safetensors"
IDS, RETIRED = "ids.parquet", "retired.parquet"


def read_manifest(where: str, folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder.

    Args:
        where: Method, for messages.
        folder: That `SemanticIDs.save` wrote.

    Raises:
        ArtifactError: If there is none, it is of an unknown version, lacks an entry, or its entries
            are of the wrong type or contradict each other.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{where}: {folder} is no folder of semantic IDs; got {MANIFEST}: {error}. "
            "Name a folder that SemanticIDs.save wrote."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(
            f"{where}: {path} is not of semantic IDs. Name a folder that SemanticIDs.save wrote."
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{where}: {path} has format_version={manifest.get('format_version')!r}; this "
            f"rqtoolkit reads {FORMAT_VERSION}. Update rqtoolkit."
        )
    lacking = [name for name in _RULES if name not in manifest]
    if lacking:
        raise ArtifactError(f"{where}: {path} lacks {', '.join(lacking)}. Save it again.")
    for name, (fits, rule) in _RULES.items():
        if not fits(manifest[name]):
            raise _broken(where, path, manifest, name, rule)
    _check_consistent(where, path, manifest)
    return manifest


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "version": (lambda value: isinstance(value, str), "be a string"),
    "history": (
        lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
        "be a list of strings",
    ),
    "items": (lambda value: _is_count(value, 0), "be an integer of at least 0"),
    "retired": (lambda value: _is_count(value, 0), "be an integer of at least 0"),
    "depth": (lambda value: _is_count(value, 1), "be an integer of at least 1"),
    "codebook_sizes": (
        lambda value: isinstance(value, list) and all(_is_count(size, 1) for size in value),
        "be a list of integers of at least 1",
    ),
    "collisions": (
        lambda value: value in get_args(Collisions),
        f"be one of {', '.join(get_args(Collisions))}",
    ),
    "dim": (lambda value: value is None or _is_count(value, 1), "be a positive integer or null"),
    "encoder": (lambda value: value is None or isinstance(value, str), "be a string or null"),
    "mse": (
        lambda value: value is None or (type(value) in (int, float) and value >= 0),
        "be a number of at least 0, or null",
    ),
    "fitted_with": (lambda value: value is None or isinstance(value, dict), "be a map or null"),
    "files": (
        lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
        "map names to checksums",
    ),
}
"""Of each entry, whether a value will do, and what it has to be."""


def _check_consistent(where: str, path: Path, manifest: dict[str, Any]) -> None:
    length = manifest["depth"] + (manifest["collisions"] == "token")
    if len(manifest["codebook_sizes"]) != length:
        rule = (
            f"have {length} numbers with depth={manifest['depth']} and "
            f"collisions={manifest['collisions']!r}"
        )
        raise _broken(where, path, manifest, "codebook_sizes", rule)
    expected = {IDS}
    expected |= {CODEBOOKS} if manifest["dim"] is not None else set()
    expected |= {RETIRED} if manifest["retired"] else set()
    if set(manifest["files"]) != expected:
        rule = (
            f"name {', '.join(sorted(expected))} with dim={manifest['dim']} and "
            f"retired={manifest['retired']}"
        )
        raise _broken(where, path, manifest, "files", rule)


def _broken(
    where: str, path: Path, manifest: dict[str, Any], name: str, rule: str
) -> ArtifactError:
    value = sorted(manifest[name]) if name == "files" and manifest[name] else manifest[name]
    return ArtifactError(
        f"{where}: {path} was changed: {name} has to {rule}; got {shown(value)}. Bring back the "
        "manifest that was saved."
    )
