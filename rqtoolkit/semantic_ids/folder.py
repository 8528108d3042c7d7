"""Semantic IDs as a folder: manifest.json, codebooks.safetensors, ids.parquet."""

import hashlib
import json
import math
import os
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
from rqtoolkit.semantic_ids.manifest import (
    CODEBOOKS,
    FORMAT,
    FORMAT_VERSION,
    IDS,
    MANIFEST,
    RETIRED,
    read_manifest,
)
from rqtoolkit.semantic_ids.stacks import stack_numbers
from rqtoolkit.semantic_ids.standardize import Standardization

if TYPE_CHECKING:
    from rqtoolkit.semantic_ids.ids import SemanticIDs

__all__ = ["load", "save"]

_OWN = (MANIFEST, CODEBOOKS, IDS, RETIRED)
_CLASS = "SemanticIDs"


def save(self: "SemanticIDs", folder: str | Path) -> None:
    """Write a folder: manifest, codebooks, and a table of items and codes; see `load`.

    `ids.parquet` has a row for each item published: `item_id`, `code_0`, `code_1`, …, and `added`,
    the number of the version that published it. `retired.parquet` holds the same of items removed,
    where there are any. `codebooks.safetensors` has the quantizer, and centre and scale of the
    embeddings. An older folder of semantic IDs is replaced as a whole, and what else lies in it is
    kept; wherever saving is interrupted, `load` finds the one or the other. A shell that stands in
    the folder has to enter it again: `cd .`.

    Args:
        self: Semantic IDs.
        folder: Where to write; its parent has to exist. Of a link, what it leads to is replaced.

    Raises:
        ArtifactError: If the folder holds something else, or cannot be written.
    """
    path = Path(folder).resolve()  # of a link, what it leads to is replaced
    if path.exists() and not path.is_dir():
        raise ArtifactError(
            f"SemanticIDs.save: {folder} has to be a folder; got a file. Choose another name."
        )
    _recover(path)
    if path.is_dir() and any(path.iterdir()):
        read_manifest("SemanticIDs.save", path)  # nothing but our own is replaced
    staged = path.with_name(f".{path.name}.next")
    shutil.rmtree(staged, ignore_errors=True)
    with atomic_folder(staged) as temporary:
        _write(self, temporary)
        for other in path.iterdir() if path.is_dir() else ():
            if other.name not in _OWN:
                copy: Any = shutil.copytree if other.is_dir() else shutil.copy2
                copy(other, temporary / other.name)
    working_folder = path.is_dir() and path.samefile(".")
    if path.is_dir():
        path.rename(_previous(path))
    staged.rename(path)
    if working_folder:
        os.chdir(path)  # and not in the one that is removed now
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
            since; if its entries contradict each other; or if the IDs were made for another encoder
            or dim.
        ConfigError: If the device is unknown or not there.
    """
    path = Path(folder)
    if not path.exists() and _previous(path.resolve()).is_dir():
        path = _previous(path.resolve())  # replacing it was interrupted, or is under way
    where = "SemanticIDs.load"
    manifest = read_manifest(where, path)
    _check_expected(where, path, manifest, encoder=encoder, dim=dim)
    for name, checksum in manifest["files"].items():
        _check_file(where, path / name, checksum)
    quantizer, standardization = None, None
    if CODEBOOKS in manifest["files"]:
        quantizer, standardization = _read_codebooks(path / CODEBOOKS, device)
        _check_codebooks(where, path, manifest, quantizer, standardization)
    length = len(manifest["codebook_sizes"])
    item_ids, codes, added = _read_items(where, path / IDS, manifest["items"], length, "added")
    retired_ids, retired_codes = item_ids[:0], codes[:0]
    if RETIRED in manifest["files"]:
        retired_ids, retired_codes = _read_items(where, path / RETIRED, manifest["retired"], length)
        item_ids = item_ids if len(item_ids) else retired_ids[:0]
    _check_codes(where, path / IDS, manifest, codes, added)
    _check_codes(where, path / RETIRED, manifest, retired_codes)
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
        _write_codebooks(folder / CODEBOOKS, ids.quantizer, ids.standardization)
    _write_items(folder / IDS, ids.item_ids, ids.codes, ids.codebook_sizes, added=ids.added)
    if len(ids.retired_ids):
        _write_items(folder / RETIRED, ids.retired_ids, ids.retired_codes, ids.codebook_sizes)
    names = sorted(path.name for path in folder.iterdir())
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
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
    with atomic_path(folder / MANIFEST) as temporary:
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
    if not {"class", "arguments"} <= header.keys() or not {"center", "scale"} <= tensors.keys():
        raise ArtifactError(f"SemanticIDs.load: {path} lacks a part of codebooks. Save it again.")
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
        rest = [table.column(name).to_numpy().astype(np.int32) for name in others]
        codes = np.column_stack(columns).astype(np.int64)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{where}: {path} is no table of item ids and codes; got {error}. Save it again."
        ) from error
    if len(item_ids) != rows:
        raise ArtifactError(
            f"{where}: {path} has to have {rows} rows as the manifest says; got {len(item_ids)}. "
            "Save it again."
        )
    return item_ids, codes, *rest


def _check_expected(
    where: str, path: Path, manifest: dict[str, Any], *, encoder: str | None, dim: int | None
) -> None:
    for name, expected in {"encoder": encoder, "dim": dim}.items():
        if expected is not None and manifest[name] != expected:
            raise ArtifactError(
                f"{where}: {path} was made for {name}={manifest[name]!r}; got {name}={expected!r}. "
                "Encode with the model these codebooks know, or fit new ones."
            )


def _check_codebooks(
    where: str,
    path: Path,
    manifest: dict[str, Any],
    quantizer: Quantizer,
    standardization: Standardization,
) -> None:
    own = {"dim": quantizer.dim, "codebook_sizes": list(quantizer.codebook_sizes)}
    told = {**manifest, "codebook_sizes": manifest["codebook_sizes"][: manifest["depth"]]}
    for name, value in own.items():
        if told[name] != value:
            raise ArtifactError(
                f"{where}: {path / MANIFEST} was changed: {name}={told[name]} is not that of "
                f"{CODEBOOKS}; got {value} there. Bring back the manifest that was saved."
            )
    if not standardization.center.shape == standardization.scale.shape == (quantizer.dim,):
        raise ArtifactError(
            f"{where}: {path / CODEBOOKS} has to have centre and scale of {quantizer.dim} numbers. "
            "Save it again."
        )


def _check_codes(
    where: str,
    path: Path,
    manifest: dict[str, Any],
    codes: NDArray[np.int64],
    added: NDArray[np.int32] | None = None,
) -> None:
    """Refuse codes and versions of items that the manifest does not allow."""
    sizes = np.array(manifest["codebook_sizes"])
    outside = ((codes < 0) | (codes >= sizes)).any(axis=1)
    if added is not None:
        outside |= (added < 0) | (added > len(manifest["history"]))
    if outside.any():
        raise ArtifactError(
            f"{where}: {path} does not fit {MANIFEST}: codes have to be below "
            f"{tuple(sizes.tolist())}, and versions no later than {len(manifest['history'])}; got "
            f"others in row {np.argmax(outside)}. Bring back the files that were saved."
        )
    if added is not None and manifest["collisions"] != "allow":
        distinct = len(np.unique(stack_numbers(codes, sizes.tolist())))
        if distinct < len(codes):
            raise ArtifactError(
                f"{where}: {path} has to have codes that differ, with "
                f"collisions={manifest['collisions']!r} in {MANIFEST}; got {len(codes) - distinct} "
                "too many. Bring back the files that were saved."
            )


def _check_file(where: str, path: Path, checksum: str) -> None:
    if not path.is_file():
        raise ArtifactError(f"{where}: {path} is missing. Save the semantic IDs again.")
    found = _checksum(path)
    if found != checksum:
        raise ArtifactError(
            f"{where}: {path} was changed since it was saved; got sha256 {found[:12]}… in place of "
            f"{checksum[:12]}…. Bring back the file that belongs to {MANIFEST}."
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
