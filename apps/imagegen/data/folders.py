"""Images as files: folders, with or without classes, and the folders of ImageNet and FFHQ."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagegen.data.stored import Table, digest_rows
from imagegen.data.strings import Strings
from rqtoolkit.errors import ArtifactError, DataError

__all__ = ["EXTENSIONS", "Files", "open_ffhq", "open_folder", "open_imagenet"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FFHQ_TRAIN = 60_000  # the data set's own division: the last 10,000 are for validation


@dataclass(frozen=True)
class Files:
    """Image files under a folder.

    Attributes:
        root: The folder.
        paths: Path of each file from there, with slashes.
    """

    root: str
    paths: Strings

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> bytes:
        """Return one image file."""
        return Path(self.name(row)).read_bytes()

    def name(self, row: int) -> str:
        """Return the path of one image."""
        return os.path.join(self.root, self.paths[row])  # noqa: PTH118 - called for every image

    def fingerprint(self, rows: np.ndarray) -> str:
        """Return the SHA-256 of the paths from the root, and the sizes."""
        return digest_rows(
            f"{self.paths[row]} {self._size(row)}".encode("utf-8", "surrogateescape")
            for row in rows.tolist()
        )

    def _size(self, row: int) -> int:
        try:
            return Path(self.name(row)).stat().st_size
        except OSError:
            return -1


def open_folder(path: Path) -> Table:
    """Return the images directly in a folder, or in one subfolder for each class.

    Inside the folder of a class there may be further folders. Hidden files and folders are left
    out.

    Raises:
        ArtifactError: If the folder is missing.
        DataError: If there are no images, or class folders and loose images are mixed.
    """
    _check_folder(path)
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = [Path(name) for name in _images_in(path)]
    classes = {folder.name: _nested(folder) for folder in folders}
    if not loose and not any(classes.values()):
        raise DataError(
            f"data: path={path} holds no images; got neither {', '.join(EXTENSIONS[:3])} … "
            "files nor subfolders with any. Point to a folder of images."
        )
    empty = [name for name, members in classes.items() if not members]
    if classes and not loose and empty:
        raise DataError(
            f"data: path={path} has class folders without images: {', '.join(empty[:3])}. "
            "Fill or remove them."
        )
    if loose and any(classes.values()):
        raise DataError(
            f"data: path={path} holds {len(loose)} images beside class folders; "
            f"got {loose[0]} and {next(iter(classes))}/. Move them into class folders."
        )
    if loose:
        return Table(_files(path, loose))
    return _classed(path, classes)


def open_imagenet(path: Path) -> tuple[Table, Table]:
    """Return the images of train/ and val/, each with a folder for every class.

    The number of a class is the place of its folder, a WordNet id, in alphabetical order: the
    numbering of the released models.

    Raises:
        ArtifactError: If a folder is missing.
        DataError: If a part has no class folders, or val/ has a class that train/ has not.
    """
    tables = []
    for part in ("train", "val"):
        _check_folder(path / part)
        table = open_folder(path / part)
        if table.class_names is None:
            raise DataError(
                f"data: {path / part} must hold a folder for each class; got loose images. Sort "
                f"them into folders named by WordNet id."
            )
        tables.append(table)
    train, val = tables
    names = train.class_names or ()
    strange = sorted(set(val.class_names or ()) - set(names))
    if strange:
        raise DataError(
            f"data: {path / 'val'} has classes that train/ has not; got {', '.join(strange[:3])}. "
            f"Give both the same class folders."
        )
    places = np.array([names.index(name) for name in val.class_names or ()])
    assert val.labels is not None
    return train, Table(val.records, places[val.labels], names)


def open_ffhq(path: Path) -> tuple[Table, Table | None]:
    """Return the images of FFHQ, flat or in folders of a thousand.

    Where `ffhqtrain.txt` and `ffhqvalidation.txt` lie in the folder, a path a line, they say which
    image is for what: the paper took the lists of taming-transformers. Otherwise the first 60,000
    numbers are for training and the rest for validation, as the data set itself has it. Where only
    one of these parts is there, nothing is held out here.

    Raises:
        ArtifactError: If the folder or a listed image is missing.
        DataError: If there are no images, or one that has no number for a name.
    """
    _check_folder(path)
    lists = [path / "ffhqtrain.txt", path / "ffhqvalidation.txt"]
    if all(file.is_file() for file in lists):
        train, val = ([Path(line) for line in _lines(file)] for file in lists)
        absent = next((p for p in (*train, *val) if not (path / p).is_file()), None)
        if absent is not None:
            raise ArtifactError(f"data: {path / absent} is listed and missing. Check {lists[0]}.")
        return Table(_files(path, train)), Table(_files(path, val))
    files = _nested(path, below=path)
    if not files:
        raise DataError(f"data: path={path} holds no images. Point to the folder of FFHQ's images.")
    strange = next((f for f in files if not re.fullmatch(r"\d+", f.stem)), None)
    if strange is not None:
        raise DataError(
            f"data: source='ffhq' needs images named by number; got {strange}. Use source: folder."
        )
    train = [file for file in files if int(file.stem) < FFHQ_TRAIN]
    val = [file for file in files if int(file.stem) >= FFHQ_TRAIN]
    if not train or not val:
        return Table(_files(path, files)), None
    return Table(_files(path, train)), Table(_files(path, val))


def _check_folder(path: Path) -> None:
    if path.is_file() and path.suffix.lower() == ".npz":
        raise ArtifactError(
            f"data: path={path} is not a folder; got an archive. Set data.source: npz."
        )
    if not path.is_dir():
        raise ArtifactError(f"data: path={path} is not a folder. Check the path.")


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def _classed(path: Path, classes: dict[str, list[Path]]) -> Table:
    counts = [len(members) for members in classes.values()]
    labels = np.repeat(np.arange(len(counts)), counts)
    files = [file for members in classes.values() for file in members]
    return Table(_files(path, files), labels, tuple(classes))


def _files(root: Path, paths: Sequence[Path]) -> Files:
    return Files(str(root), Strings.pack(path.as_posix() for path in paths))


def _nested(folder: Path, *, below: Path | None = None) -> list[Path]:
    """Return the images in a folder and its subfolders, in order, as paths from `below`."""
    below = folder.parent if below is None else below
    here = folder.relative_to(below)
    with os.scandir(folder) as entries:
        inner = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    found = [here / name for name in _images_in(folder)]
    for name in inner:
        found += _nested(folder / name, below=below)
    return found


def _images_in(folder: Path) -> list[str]:
    def names() -> Iterator[str]:
        with os.scandir(folder) as entries:  # a million calls of Path.is_file take a minute
            for entry in entries:
                name = entry.name
                if name.lower().endswith(EXTENSIONS) and name[0] != "." and entry.is_file():
                    yield name

    return sorted(names())
