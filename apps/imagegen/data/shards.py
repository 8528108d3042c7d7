"""WebDataset shards: tar files whose members of one name are one sample, read in any order.

The format is usually streamed, which fixes neither order nor resumption. A tar file is not
compressed, though, so a member is bytes at an offset; the offsets are listed once and kept.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from imagegen.data.folders import EXTENSIONS
from imagegen.data.index import cached_index
from imagegen.data.stored import Table, digest_rows
from imagegen.data.strings import Strings
from rqtoolkit.errors import ArtifactError, DataError
from rqtoolkit.functional.progress import Progress, report

__all__ = ["find_shards", "open_webdataset"]

LABELS = ("cls", "label", "class")
TEXTS = ("txt", "text", "caption")


@dataclass(frozen=True)
class Members:
    """Image files inside tar files.

    Attributes:
        shards: The tar files.
        shard: Which of them holds each image, shape (N,), int64.
        offsets: Where it begins there, shape (N,), int64.
        sizes: Its bytes, shape (N,), int64.
        names: Name of each member.
    """

    shards: tuple[str, ...]
    shard: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    names: Strings

    def __len__(self) -> int:
        return len(self.shard)

    def read(self, row: int) -> bytes:
        """Return one image file."""
        with Path(self.shards[self.shard[row]]).open("rb") as file:
            file.seek(self.offsets[row])
            return file.read(self.sizes[row])

    def name(self, row: int) -> str:
        """Return the shard and the member."""
        return f"{self.shards[self.shard[row]]}:{self.names[row]}"

    def fingerprint(self, rows: np.ndarray) -> str:
        """Return the SHA-256 of names of shards and members, offsets and sizes."""
        shards = [Path(shard).name for shard in self.shards]
        return digest_rows(
            f"{shards[self.shard[r]]} {self.names[r]} {self.offsets[r]} {self.sizes[r]}".encode(
                "utf-8", "surrogateescape"
            )
            for r in rows.tolist()
        )


def find_shards(pattern: str | Path) -> list[Path]:
    """Return the tar files of a folder, or those a pattern stands for, in the order it gives.

    Args:
        pattern: A folder, a file, `shards/train-{0000..0146}.tar`, or `shards/*.tar`.

    Raises:
        ArtifactError: If there are none, or one is missing.
    """
    pattern = str(pattern)
    if Path(pattern).is_dir():
        found = sorted(Path(pattern).glob("*.tar"))
    else:
        found = []
        for expanded in _expand_braces(pattern):
            magic = re.search(r"[*?[]", expanded)
            found += [Path(p) for p in sorted(glob(expanded))] if magic else [Path(expanded)]  # noqa: PTH207
    missing = next((shard for shard in found if not shard.is_file()), None)
    if not found or missing is not None:
        raise ArtifactError(
            f"data: path={pattern} must name .tar files; got {missing or 'none'}. Check the "
            f"folder or the pattern."
        )
    return found


def _expand_braces(pattern: str) -> list[str]:
    """Expand {000..012} and {a,b}, as WebDataset and shells do."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span:
        low, high = int(span[1]), int(span[2])
        width = len(span[1]) if span[1].startswith("0") else 0
        middles = [f"{number:0{width}d}" for number in range(low, high + 1)]
    else:
        middles = found[1].split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [expanded for middle in middles for expanded in _expand_braces(head + middle + tail)]


def open_webdataset(
    path: str | Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    text_column: str | None = None,
    progress: Progress | None = None,
) -> Table:
    """Return the samples of WebDataset shards that hold an image.

    A sample is what has one name up to the first dot: `0001.jpg`, `0001.cls`, `0001.txt`,
    `0001.json`. Classes and captions are files of their own or values in the JSON.

    Args:
        path: As for `find_shards`.
        image_column: Extension of the images; None takes any that Pillow reads.
        label_column: Extension or JSON key of the classes; None takes cls, label or class.
        text_column: Extension or JSON key of the captions; None takes txt, text or caption.
        progress: Called as progress(description, done, total).

    Raises:
        ArtifactError: If a shard is missing, compressed or damaged.
        DataError: If no sample holds an image, or only some have a class or a caption.
    """
    shards = find_shards(path)
    columns = (image_column, label_column, text_column)
    kind = "tar-" + "-".join(re.sub(r"\W", "_", column or "") for column in columns)
    parts = []
    for done, shard in enumerate(shards, start=1):
        parts.append(cached_index(shard, kind, lambda shard: _index_shard(shard, *columns)))
        report(progress, "reading shards", done, len(shards))
    counts = [len(part["sizes"]) for part in parts]
    if not sum(counts):
        raise DataError(
            f"data: path={path} holds no images; got {len(shards)} shards without. Name their "
            f"extension in data.image_column."
        )
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    members = Members(
        tuple(str(shard) for shard in shards),
        np.repeat(np.arange(len(parts)), counts),
        joined["offsets"],
        joined["sizes"],
        Strings.from_lengths(joined["names"], joined["name_lengths"]),
    )
    labels = _complete(joined, "label", label_column, members)
    texts = _complete(joined, "text", text_column, members)
    return Table(members, None if labels is None else np.array(list(labels)), None, texts)


def _complete(
    index: dict[str, np.ndarray], name: str, column: str | None, members: Members
) -> Strings | None:
    """Return the classes or captions of all images; None where no image has one."""
    lengths = index[f"{name}_lengths"]  # -1: this image has none
    absent = lengths < 0
    if absent.all() and column is None:
        return None
    if absent.any():
        first = members.name(int(np.argmax(absent)))
        raise DataError(
            f"data: {absent.sum()} of {len(members)} samples have no {name}; got none for {first}. "
            f"Add it, remove the sample, or name the right key in data.{name}_column."
        )
    return Strings.from_lengths(index[f"{name}s"], lengths)


def _index_shard(path: Path, *columns: str | None) -> dict[str, np.ndarray]:
    """List the images of one shard, with their classes and captions."""
    samples = list(_samples(path, *columns))
    index = {
        "offsets": np.array([s.image.offset_data for s in samples], np.int64),
        "sizes": np.array([s.image.size for s in samples], np.int64),
    }
    columns_of_strings = {
        "name": [s.image.name for s in samples],
        "label": [s.label for s in samples],
        "text": [s.text for s in samples],
    }
    for name, strings in columns_of_strings.items():
        packed = Strings.pack(string or "" for string in strings)
        lengths = packed.stops - packed.starts
        index[f"{name}s"] = packed.buffer
        index[f"{name}_lengths"] = np.where([s is None for s in strings], -1, lengths)
    return index


@dataclass
class _Sample:
    image: tarfile.TarInfo | None = None
    label: str | None = None
    text: str | None = None


def _samples(
    path: Path, image_column: str | None, label_column: str | None, text_column: str | None
) -> Iterator[Any]:
    """Yield the samples of a shard that hold an image, in their order."""
    images = tuple(e.lstrip(".") for e in EXTENSIONS) if image_column is None else (image_column,)
    labels = LABELS if label_column is None else (label_column,)
    texts = TEXTS if text_column is None else (text_column,)
    key, sample = None, _Sample()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                extension = extension.lower()
                if not member.isreg() or not stem:
                    continue
                if (folder, stem) != key:
                    if sample.image is not None:
                        yield sample
                    key, sample = (folder, stem), _Sample()
                if extension in images:
                    sample.image = member
                elif extension in (*labels, *texts, "json"):
                    content = _read_text(tar, member)
                    found = json.loads(content) if extension == "json" else {extension: content}
                    label = next((found[k] for k in labels if k in found), None)
                    text = next((found[k] for k in texts if k in found), None)
                    sample.label = sample.label if label is None else str(label)
                    sample.text = sample.text if text is None else str(text)
    except (tarfile.TarError, OSError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"data: {path} cannot be read as a tar file; got {type(error).__name__}: {error}. "
            f"Write it anew, without compression."
        ) from None
    if sample.image is not None:
        yield sample


def _read_text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    return "" if file is None else file.read().decode("utf-8", "replace").strip()
