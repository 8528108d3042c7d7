"""Semantic IDs as a folder: manifest.json, codebooks.safetensors, ids.parquet."""

import hashlib
import json
import math
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rqtoolkit.errors import ArtifactError
from rqtoolkit.functional.codes import smallest_dtype
from rqtoolkit.io.artifact import read_artifact, write_artifact
from rqtoolkit.io.atomic import atomic_folder, atomic_path
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.loading import quantizer_kind
from rqtoolkit.semantic_ids.items import as_item_ids
from rqtoolkit.semantic_ids.standardize import Standardization

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids.ids import SemanticIDs

__all__ = ["load", "save"]

_FORMAT, _FORMAT_VERSION = "rqtoolkit semantic ids", 1
_MANIFEST, _CODEBOOKS = "manifest.json", "codebooks.safetensors"
_IDS, _RETIRED = "ids.parquet", "retired.parquet"
_OWN = (_MANIFEST, _CODEBOOKS, _IDS, _RETIRED)
_CLASS = "SemanticIDs"
_ENTRIES = (
    "version",
    "history",
    "items",
    "retired",
    "depth",
    "codebook_sizes",
    "collisions",
    "dim",
    "encoder",
    "mse",
    "fitted_with",
    "files",
)


def save(self: "SemanticIDs", folder: str | Path) -> None:
    """Write a folder: manifest, codebooks, and a table of items and codes; see `load`.

    `ids.parquet` has a row for each item published: `item_id`, `code_0`, `code_1`, …, and `added`,
    the number of the version that published it. `retired.parquet` holds the same of items removed,
    where there are any. `codebooks.safetensors` has the quantizer, and centre and scale of the
    embeddings. An older folder of semantic IDs is replaced as a whole, and what else lies in it is
    kept; wherever saving is interrupted, `load` finds the one or the other.

    Args:
        self: Semantic IDs.
        folder: Where to write; its parent has to exist.

    Raises:
        ArtifactError: If the folder holds something else, or cannot be written.
    """
    path = Path(folder)
    _recover(path)
    if path.is_dir() and any(path.iterdir()):
        _read_manifest("SemanticIDs.save", path)  # nothing but our own is replaced
    staged = path.with_name(f".{path.name}.next")
    shutil.rmtree(staged, ignore_errors=True)
    with atomic_folder(staged) as temporary:
        _write(self, temporary)
        for other in path.iterdir() if path.is_dir() else ():
            if other.name not in _OWN:
                copy: Any = shutil.copytree if other.is_dir() else shutil.copy2
                copy(other, temporary / other.name)
    if path.is_dir():
        path.rename(_previous(path))
    staged.rename(path)
    shutil.rmtree(_previous(path), ignore_errors=True)


def load(
    cls: type["SemanticIDs"],
    folder: str | Path,
    *,
    encoder: str | None = None,
    dim: int | None = None,
    device: str | torch.device = "cpu",
) -> "SemanticIDs":
    """Read a folder that `save` wrote, and check that its files belong together.

    Args:
        cls: The class.
        folder: Folder to read.
        encoder: Name that the embeddings' model has to have.
        dim: Size that the embeddings have to have.
        device: Where the quantizer goes.

    Raises:
        ArtifactError: If a file is missing, damaged, foreign, of an unknown version or changed
            since; or if the IDs were made for another encoder or dim.
    """
    path = Path(folder)
    if not path.exists() and _previous(path).is_dir():
        path = _previous(path)  # replacing it was interrupted, or is under way
    where = "SemanticIDs.load"
    manifest = _read_manifest(where, path)
    _check_expected(where, path, manifest, encoder=encoder, dim=dim)
    for name, checksum in manifest["files"].items():
        _check_file(where, path / name, checksum)
    quantizer, standardization = None, None
    if _CODEBOOKS in manifest["files"]:
        quantizer, standardization = _read_codebooks(path / _CODEBOOKS, device)
    length = len(manifest["codebook_sizes"])
    item_ids, codes, added = _read_items(where, path / _IDS, manifest["items"], length, "added")
    retired_ids, retired_codes = item_ids[:0], codes[:0]
    if _RETIRED in manifest["files"]:
        retired_ids, retired_codes = _read_items(
            where, path / _RETIRED, manifest["retired"], length
        )
        item_ids = item_ids if len(item_ids) else retired_ids[:0]
    return cls(
        item_ids=item_ids,
        codes=codes,
        level_sizes=manifest["codebook_sizes"][: manifest["depth"]],
        collisions=manifest["collisions"],
        quantizer=quantizer,
        standardization=standardization,
        added=added,
        retired_ids=retired_ids,
        retired_codes=retired_codes,
        version=manifest["version"],
        history=tuple(manifest["history"]),
        encoder=manifest["encoder"],
        fitted_with=manifest["fitted_with"],
        mse=math.nan if manifest["mse"] is None else manifest["mse"],
    )


def _write(ids: "SemanticIDs", folder: Path) -> None:
    if ids.quantizer is not None and ids.standardization is not None:
        _write_codebooks(folder / _CODEBOOKS, ids.quantizer, ids.standardization)
    _write_items(folder / _IDS, ids.item_ids, ids.codes, ids.codebook_sizes, added=ids.added)
    if len(ids.retired_ids):
        _write_items(folder / _RETIRED, ids.retired_ids, ids.retired_codes, ids.codebook_sizes)
    names = sorted(path.name for path in folder.iterdir())
    manifest = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "library_version": installed_version("rqtoolkit"),
        "version": ids.version,
        "parent": ids.parent,
        "number": ids.number,
        "items": len(ids),
        "retired": len(ids.retired_ids),
        "depth": ids.depth,
        "codebook_sizes": list(ids.codebook_sizes),
        "collisions": ids.collisions,
        "dim": ids.dim,
        "encoder": ids.encoder,
        "mse": None if math.isnan(ids.mse) else ids.mse,
        "fitted_with": ids.fitted_with,
        "files": {name: _checksum(folder / name) for name in names},
        "history": list(ids.history),
    }
    with atomic_path(folder / _MANIFEST) as temporary:
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _write_codebooks(path: Path, quantizer: Quantizer, standardization: Standardization) -> None:
    arguments, tensors = quantizer.stored()
    stored = {f"quantizer.{name}": tensor for name, tensor in tensors.items()}
    stored["center"] = torch.from_numpy(standardization.center)
    stored["scale"] = torch.from_numpy(standardization.scale)
    quantizer_arguments = {"class": type(quantizer).__name__, "arguments": arguments}
    write_artifact(path, class_name=_CLASS, arguments=quantizer_arguments, tensors=stored)


def _read_codebooks(path: Path, device: str | torch.device) -> tuple[Quantizer, Standardization]:
    header, tensors = read_artifact(path, class_name=_CLASS, device=device)
    kind = quantizer_kind(path, header["class"])
    own = {name: t for name, t in tensors.items() if name.startswith("quantizer.")}
    stored = {name.removeprefix("quantizer."): tensor for name, tensor in own.items()}
    quantizer = kind.from_stored(path, header["arguments"], stored, device)
    center, scale = (tensors[name].cpu().numpy() for name in ("center", "scale"))
    return quantizer, Standardization(center, scale)


def _write_items(
    path: Path,
    item_ids: NDArray,
    codes: NDArray[np.int64],
    codebook_sizes: tuple[int, ...],
    **others: NDArray,
) -> None:
    stored = codes.astype(smallest_dtype(codebook_sizes))
    columns = {"item_id": pa.array(item_ids)}
    columns |= {f"code_{level}": pa.array(stored[:, level]) for level in range(codes.shape[1])}
    columns |= {name: pa.array(values) for name, values in others.items()}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _read_items(
    where: str, path: Path, rows: int, length: int, *others: str
) -> tuple[NDArray, ...]:
    """Return item ids, codes (N, length) and the other columns asked for."""
    try:
        table = pq.read_table(path)
        columns = [table.column(f"code_{level}").to_numpy() for level in range(length)]
        item_ids = as_item_ids(where, table.column("item_id"))
        rest = [table.column(name).to_numpy() for name in others]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{where}: {path} is no table of item ids and codes; got {error}. Save it again."
        ) from error
    if len(item_ids) != rows:
        raise ArtifactError(
            f"{where}: {path} has to have {rows} rows as the manifest says; got {len(item_ids)}. "
            "Save it again."
        )
    return item_ids, np.column_stack(columns).astype(np.int64), *rest


def _read_manifest(where: str, folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{where}: {folder} is no folder of semantic IDs; got {_MANIFEST}: {error}. "
            "Name a folder that SemanticIDs.save wrote."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ArtifactError(
            f"{where}: {path} is not of semantic IDs. Name a folder that SemanticIDs.save wrote."
        )
    if manifest.get("format_version") != _FORMAT_VERSION:
        raise ArtifactError(
            f"{where}: {path} has format_version={manifest.get('format_version')!r}; this "
            f"rqtoolkit reads {_FORMAT_VERSION}. Update rqtoolkit."
        )
    lacking = [name for name in _ENTRIES if name not in manifest]
    if lacking:
        raise ArtifactError(f"{where}: {path} lacks {', '.join(lacking)}. Save it again.")
    return manifest


def _check_expected(
    where: str, path: Path, manifest: dict[str, Any], *, encoder: str | None, dim: int | None
) -> None:
    for name, expected in {"encoder": encoder, "dim": dim}.items():
        if expected is not None and manifest[name] != expected:
            raise ArtifactError(
                f"{where}: {path} was made for {name}={manifest[name]!r}; got {name}={expected!r}. "
                "Encode with the model these codebooks know, or fit new ones."
            )


def _check_file(where: str, path: Path, checksum: str) -> None:
    if not path.is_file():
        raise ArtifactError(f"{where}: {path} is missing. Save the semantic IDs again.")
    found = _checksum(path)
    if found != checksum:
        raise ArtifactError(
            f"{where}: {path} was changed since it was saved; got sha256 {found[:12]}… in place of "
            f"{checksum[:12]}…. Bring back the file that belongs to {_MANIFEST}."
        )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _recover(path: Path) -> None:
    """Finish or undo a replacement that was interrupted."""
    previous = _previous(path)
    if not previous.is_dir():
        return
    if path.is_dir():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        previous.rename(path)
