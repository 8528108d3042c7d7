"""Images in arrays: the digits of scikit-learn, and .npz archives."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagegen.data.stored import Arrays, Records, Table, digest_rows
from rqtoolkit.errors import ArtifactError, DataError, ShapeError

__all__ = ["join_files", "open_digits", "open_npz", "reading_npz"]


def open_digits() -> Table:
    """Return the 1,797 handwritten digits of scikit-learn, 8x8, their 17 levels spread over 255."""
    from sklearn.datasets import load_digits  # takes half a second; only this source needs it

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Table(Arrays(images, "digits"), digits.target, tuple("0123456789"))


def open_npz(path: Path) -> tuple[Table, Table]:
    """Return the training and the test images of an .npz archive, at the size they have.

    Pixels are `x_train` and `x_test`, uint8 (N, H, W) or (N, H, W, C); or image files are joined in
    `jpeg_train` and `jpeg_test`, uint8, where image i is bytes offsets_train[i] to
    offsets_train[i + 1] of the first (any format that Pillow reads). Classes are `y_train` and
    `y_test`, integers (N,), and `class_names`.

    Raises:
        ArtifactError: If the file is missing, truncated or not an .npz archive.
        DataError: If arrays are missing or not as above.
        ShapeError: If images have neither one channel nor three.
    """
    arrays = _read_arrays(path)
    kind = "jpeg" if "jpeg_train" in arrays else "x"
    needed = [f"{kind}_train", f"{kind}_test"]
    if kind == "jpeg":
        needed += ["offsets_train", "offsets_test"]
    if "y_train" in arrays or "y_test" in arrays:
        needed += ["y_train", "y_test"]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise DataError(
            f"data: {path} lacks {', '.join(missing)}; got {', '.join(arrays) or 'nothing'}."
            " Save x_train and x_test, and y_train and y_test for images with classes."
        )
    names = None
    if "y_train" in arrays and "class_names" in arrays:
        names = tuple(str(name) for name in arrays["class_names"])
    read = join_files if kind == "jpeg" else _pixels
    train, test = (
        Table(read(path, arrays, part), arrays.get(f"y_{part}"), names)
        for part in ("train", "test")
    )
    return train, test


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        raise ArtifactError(
            f"data: path={path} is not a file; got a folder. For a folder of images set "
            f"data.source: folder."
        )
    if not path.is_file():
        raise ArtifactError(f"data: path={path} is not a file. Check the path.")
    advice = "Write it with np.savez(path, x_train=…, …)"
    with reading_npz(path, where="data", advice=advice) as file:
        return {name: file[name] for name in file.files}


@contextmanager
def reading_npz(path: Path, *, where: str, advice: str) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an .npz archive, whose arrays are to be read within the block.

    Args:
        path: The archive.
        where: What messages begin with.
        advice: What they end with.

    Raises:
        ArtifactError: If the file is missing, damaged, no archive, or needs pickles.
    """
    try:
        with path.open("rb") as stream:  # np.load leaves its own file open where it fails
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array (.npy)")
            yield file
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(
            f"{where}: {path} cannot be read as an .npz archive without pickles; got "
            f"{type(error).__name__}: {error}. {advice}."
        ) from None


def _pixels(path: Path, arrays: dict[str, np.ndarray], part: str) -> Records:
    images = arrays[f"x_{part}"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise DataError(
            f"data: x_{part} of {path} must be uint8 (N, H, W) or (N, H, W, C) and not "
            f"empty; got {images.dtype} {images.shape}. Save pixel values 0 to 255 as uint8."
        )
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[3] not in (1, 3):
        raise ShapeError(
            f"data: x_{part} of {path} must have 1 or 3 channels; got shape {images.shape}. "
            f"Save grey or RGB images."
        )
    return Arrays(images, f"{path}:x_{part}")


@dataclass(frozen=True)
class JoinedFiles:
    """Image files one after another in one array.

    Attributes:
        buffer: Their bytes, shape (M,), uint8.
        offsets: Where each begins, and at last the end, shape (N + 1,), int64.
        source: What to call the array in messages.
    """

    buffer: np.ndarray
    offsets: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, row: int) -> bytes:
        """Return one image file."""
        return self.buffer[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def name(self, row: int) -> str:
        """Return the name of the array and the row."""
        return f"{self.source}[{row}]"

    def fingerprint(self, rows: np.ndarray) -> str:
        """Return the SHA-256 of the files."""
        return digest_rows(self.read(int(row)) for row in rows)


def join_files(path: Path, arrays: Mapping[str, np.ndarray], part: str) -> JoinedFiles:
    """Return the image files of one part of an archive, laid out as `open_npz` describes.

    Args:
        path: The archive.
        arrays: What was read of it, `jpeg_PART` and `offsets_PART` at least.
        part: "train" or "test".

    Raises:
        DataError: If the offsets do not divide the bytes into files.
    """
    buffer, offsets = arrays[f"jpeg_{part}"], arrays[f"offsets_{part}"]
    if (
        buffer.dtype != np.uint8
        or buffer.ndim != 1
        or offsets.ndim != 1
        or offsets.dtype.kind not in "iu"
        or len(offsets) < 2
        or offsets[0] != 0
        or offsets[-1] != len(buffer)
        or (np.diff(offsets.astype(np.int64)) < 0).any()
    ):
        raise DataError(
            f"data: offsets_{part} of {path} must rise from 0 to the length of jpeg_{part}, uint8; "
            f"got {offsets.dtype} {offsets.shape} for {buffer.dtype} {buffer.shape}. Save where "
            f"each file begins, and the end of the last."
        )
    return JoinedFiles(buffer, offsets.astype(np.int64), f"{path}:jpeg_{part}")
