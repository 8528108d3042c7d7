"""Images in databases: the LMDBs of LSUN, and data sets of Hugging Face on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from imagegen.data.index import cached_index
from imagegen.data.stored import Table, digest_rows
from imagegen.data.strings import Strings
from rqtoolkit.errors import ArtifactError, DataError, MissingDependencyError

__all__ = ["open_huggingface", "open_lsun"]

LABELS = ("label", "labels", "class", "fine_label")
TEXTS = ("text", "caption", "captions", "txt", "prompt")
HELD_OUT = ("test", "validation", "val", "valid")


def open_lsun(path: Path) -> tuple[Table, Table | None]:
    """Return the images of one category of LSUN, as its downloader unpacks it.

    Args:
        path: The LMDB folder, or one that holds a `*_train_lmdb` and perhaps a `*_val_lmdb`.

    Returns:
        Training images, and those for validation if there are any.

    Raises:
        ArtifactError: If there is no LMDB, or it cannot be read.
        MissingDependencyError: If lmdb is not installed.
    """
    found = [path] if (path / "data.mdb").is_file() else sorted(path.glob("*_train_lmdb"))
    if len(found) != 1 or not (found[0] / "data.mdb").is_file():
        raise ArtifactError(
            f"data: path={path} must be an LMDB or hold one *_train_lmdb; got {len(found)} of "
            f"them. Point to the unpacked category, e.g. church_outdoor_train_lmdb."
        )
    train = found[0]
    val = train.with_name(train.name.removesuffix("_train_lmdb") + "_val_lmdb")
    has_val = val != train and (val / "data.mdb").is_file()
    return _open_lmdb(train), _open_lmdb(val) if has_val else None


def _open_lmdb(path: Path) -> Table:
    _environment(str(path))  # says so where it cannot be opened
    index = cached_index(path / "data.mdb", "lmdb", lambda file: _list_keys(file.parent))
    return Table(Lmdb(str(path), Strings.from_lengths(index["keys"], index["key_lengths"])))


@cache
def _environment(path: str) -> Any:
    """Return the database of a folder; a process may open each only once."""
    try:
        import lmdb
    except ImportError:
        raise MissingDependencyError(
            "data: source='lsun' needs lmdb; got none installed. Run "
            "`pip install 'rqtoolkit[data]'`."
        ) from None
    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise ArtifactError(
            f"data: {path} cannot be read as an LMDB; got {error}. Unpack it anew."
        ) from None


def _list_keys(path: Path) -> dict[str, np.ndarray]:
    with _environment(str(path)).begin() as transaction:
        keys = list(transaction.cursor().iternext(keys=True, values=False))
    lengths = np.array([len(key) for key in keys], np.int64)
    return {"keys": np.frombuffer(b"".join(keys), np.uint8), "key_lengths": lengths}


@dataclass(frozen=True)
class Lmdb:
    """Image files in an LMDB.

    Attributes:
        path: Its folder.
        keys: Key of each image.
    """

    path: str
    keys: Strings

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, row: int) -> bytes:
        """Return one image file."""
        with _environment(self.path).begin() as transaction:
            return transaction.get(self.keys[row].encode("utf-8", "surrogateescape")) or b""

    def name(self, row: int) -> str:
        """Return the folder and the key."""
        return f"{self.path}:{self.keys[row]}"

    def fingerprint(self, rows: np.ndarray) -> str:
        """Return the SHA-256 of the keys, which LSUN makes from the images, and the size of all."""
        size = (Path(self.path) / "data.mdb").stat().st_size
        keys = self.keys.take(rows)
        return digest_rows(
            [str(size).encode(), *(key.encode("utf-8", "surrogateescape") for key in keys)]
        )


def open_huggingface(
    path: str | Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    text_column: str | None = None,
) -> tuple[Table, Table | None]:
    """Return the images of a data set of Hugging Face's `datasets`.

    Args:
        path: A folder written by `save_to_disk`, or else the name of a data set, which `datasets`
            finds in its cache or downloads.
        image_column: Column of images; None takes the only one of that type.
        label_column: Column of classes; None takes the only one of that type, or label.
        text_column: Column of captions; None takes text or caption, where there is one. An
            image without one has the empty text.

    Returns:
        Training images, and the test or validation images if there is such a split.

    Raises:
        ArtifactError: If there is no such data set.
        DataError: If it has no column of images or training split, or a named column is missing.
        MissingDependencyError: If datasets is not installed.
    """
    datasets = _import_datasets()
    try:
        found = (
            datasets.load_from_disk(str(path))
            if Path(path).is_dir()
            else datasets.load_dataset(str(path))
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(
            f"data: path={path} is no data set of Hugging Face; got {type(error).__name__}: "
            f"{reason:.200}. Write one with Dataset.save_to_disk."
        ) from None
    if isinstance(found, datasets.Dataset):
        parts = {"train": found}
    elif isinstance(found, datasets.DatasetDict):
        parts = dict(found)
    else:
        parts = {}
    if "train" not in parts:
        raise DataError(
            f"data: path={path} must be a data set or have a split 'train'; got "
            f"{', '.join(parts) or type(found).__name__}. Save the split as a data set of its own."
        )
    columns = (image_column, label_column, text_column)
    held_out = next((parts[name] for name in HELD_OUT if name in parts), None)
    train = _read_columns(path, parts["train"], datasets, *columns)
    return train, None if held_out is None else _read_columns(path, held_out, datasets, *columns)


def _import_datasets() -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError(
            "data: source='huggingface' needs datasets; got none installed. Run "
            "`pip install 'rqtoolkit[data]'`."
        ) from None
    return datasets


def _read_columns(
    path: str | Path,
    dataset: Any,
    datasets: ModuleType,
    image_column: str | None,
    label_column: str | None,
    text_column: str | None,
) -> Table:
    features = dataset.features
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    image = _find(path, features, image_column, pictures)
    label = _find(path, features, label_column, classes or LABELS)
    text = _find(path, features, text_column, TEXTS)
    if image is None:
        raise DataError(
            f"data: {path} has no column of images; got {', '.join(features)}. Name it in "
            f"data.image_column."
        )
    if isinstance(features[image], datasets.Image):
        files = dataset.cast_column(image, datasets.Image(decode=False))
    else:
        files = dataset
    names = getattr(features[label], "names", None) if label is not None else None
    return Table(
        HuggingFaceRows(files.select_columns([image]), image, str(path)),
        None if label is None else np.array(dataset[label][:]),
        None if names is None else tuple(names),
        None if text is None else Strings.pack(_caption(value) for value in dataset[text][:]),
    )


def _caption(value: Any) -> str:
    """Return the text of a cell; an empty one has no text, and not the word None."""
    return "" if value is None else str(value)


def _find(path: str | Path, features: Any, name: str | None, usual: Sequence[str]) -> str | None:
    """Return the column named, or the first of the usual ones that is there."""
    if name is not None and name not in features:
        raise DataError(
            f"data: {path} has no column {name!r}; got {', '.join(features)}. Name one of these."
        )
    return name or next((column for column in usual if column in features), None)


@dataclass(frozen=True)
class HuggingFaceRows:
    """Image files in a column of a data set.

    Attributes:
        dataset: A `datasets.Dataset` with that column, not decoded.
        column: Its name.
        source: What to call the data set in messages.
    """

    dataset: Any
    column: str
    source: str

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, row: int) -> bytes:
        """Return one image file."""
        value = self.dataset[row][self.column]
        if not isinstance(value, dict):
            return bytes(value or b"")
        return value["bytes"] or Path(value["path"] or "").read_bytes()

    def name(self, row: int) -> str:
        """Return the data set and the row."""
        return f"{self.source}[{row}]"

    def fingerprint(self, rows: np.ndarray) -> str:
        """Return the SHA-256 of the rows, and of names and sizes of the files that hold them."""
        files = [Path(entry["filename"]) for entry in self.dataset.cache_files]
        sizes = [f"{file.name} {file.stat().st_size}".encode() for file in files]
        return digest_rows([*sizes, str(len(self)).encode(), rows.astype("<i8").tobytes()])
