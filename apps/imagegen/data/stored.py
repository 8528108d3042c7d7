"""Images that stay where they are until they are read: files, members of archives, arrays."""

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from imagegen.data.broken import check_broken, warn_broken
from imagegen.data.decoding import choose_square, decode_image, fit_pixels, is_grey, set_channels
from imagegen.data.strings import Strings
from imagegen.images import ImageSet, UnreadableImageError
from rqtoolkit.functional.progress import Progress, report

__all__ = [
    "Arrays",
    "Records",
    "StoredImages",
    "Table",
    "count_channels",
    "digest_rows",
    "read_pixels",
]

PROBES = 1000  # images whose header says whether a large set is grey


class Records(Protocol):
    """Where images lie, by row. Travels to the processes that read ahead."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes | np.ndarray:
        """Return an image file, or pixels (H, W, 1 or 3), uint8."""

    def name(self, row: int) -> str:
        """Return what to call it in messages."""

    def fingerprint(self, rows: np.ndarray) -> str:
        """Return hexadecimal digits that change when these images do, or their order."""


@dataclass(frozen=True)
class Arrays:
    """Images that an archive holds as one array.

    Attributes:
        images: Shape (N, H, W, 1 or 3), uint8.
        source: What to call the array in messages.
    """

    images: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int) -> np.ndarray:
        """Return the pixels of one image."""
        return self.images[row]

    def name(self, row: int) -> str:
        """Return the name of the array and the row."""
        return f"{self.source}[{row}]"

    def fingerprint(self, rows: np.ndarray) -> str:
        """Return the SHA-256 of the pixels."""
        return ImageSet(self.images[rows]).fingerprint()


@dataclass(frozen=True)
class Table:
    """What a source gives: where its images lie and what is known of each.

    Attributes:
        records: The images.
        labels: Numbers or names of their classes, shape (N,), integers or strings; or None.
        class_names: Name of each number; None to number the classes by what occurs.
        texts: A text for each image, or None.
    """

    records: Records
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    texts: Strings | None = None


def read_pixels(records: Records, row: int) -> np.ndarray:
    """Read one image as it is, shape (H, W, 1 or 3), uint8.

    Raises:
        UnreadableImageError: If the file is missing, damaged or no image.
    """
    name = records.name(row)
    try:
        raw = records.read(row)
    except OSError as error:
        raise UnreadableImageError(f"{name} ({error.strerror or error})") from None
    return raw if isinstance(raw, np.ndarray) else decode_image(raw, name)


@dataclass(frozen=True)
class StoredImages:
    """Images of one size that are decoded when they are read; an `imagegen.images.ImageData`.

    Attributes:
        records: Where the images lie.
        rows: Which of them belong to the set, shape (N,), int64.
        side: Height and width to bring them to.
        channels: 1 for greyscale, 3 for RGB.
        labels: Class of each image, shape (N,), int64; None for images without.
        class_names: One name a class; None without classes.
        texts: A text for each image; None for images without.
        fit: "resize" or "pad", as `imagegen.data.open_images` describes.
        crop: How the square of a training image is chosen, see `choose_square`.
        flip: Whether every other training image is mirrored.
        corrupt: Share of unreadable images that is passed over before the set is refused.
    """

    records: Records
    rows: np.ndarray
    side: int
    channels: int
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    texts: Strings | None = None
    fit: str = "resize"
    crop: str = "center"
    flip: bool = False
    corrupt: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.side, self.side

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def skippable(self) -> int:
        """Unreadable images that are passed over before the set is refused."""
        return int(round(self.corrupt * len(self), 6))

    def read(self, row: int, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """Return one image, shape (H, W, C), uint8.

        Args:
            row: Row of the set.
            generator: Draws the square and whether it is mirrored; None gives the central square.

        Raises:
            UnreadableImageError: If the file is missing, damaged or no image.
            DataError: If it is larger than a set with fit="pad" allows.
        """
        record = int(self.rows[row])
        pixels = read_pixels(self.records, record)
        height, width = pixels.shape[:2]
        square = choose_square(
            height, width, crop=self.crop, resolution=self.side, generator=generator
        )
        pixels = set_channels(pixels, self.channels)
        name = self.records.name(record)
        image = fit_pixels(pixels, self.side, fit=self.fit, square=square, name=name)
        if self.flip and generator is not None and generator.random() < 0.5:
            return image[:, ::-1]
        return image

    def subset(self, rows: np.ndarray) -> "StoredImages":
        """Return the images of these rows, shape (M,), int64, with all that is known of them."""
        return dataclasses.replace(
            self,
            rows=self.rows[rows],
            labels=None if self.labels is None else self.labels[rows],
            texts=None if self.texts is None else self.texts.take(rows),
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 of where the images lie and what they are, without reading them."""
        digest = hashlib.sha256(f"{self.side} {self.channels}".encode())
        digest.update(self.records.fingerprint(self.rows).encode())
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        if self.texts is not None:
            digest.update(digest_rows(text.encode() for text in self.texts).encode())
        return digest.hexdigest()

    def to_memory(
        self, rows: np.ndarray | None = None, *, progress: Progress | None = None
    ) -> ImageSet:
        """Decode the central squares of these rows, or of all; what cannot be read is left out.

        Args:
            rows: Rows of the set, shape (M,), int64.
            progress: Called as progress(description, done, total).

        Raises:
            ArtifactError: If more than the share `corrupt` of them cannot be read.
            DataError: If an image is larger than fit="pad" allows.
        """
        part = self if rows is None else self.subset(rows)
        images = np.empty((len(part), *self.resolution, self.channels), np.uint8)
        kept: list[int] = []
        broken: list[str] = []
        for row in range(len(part)):
            try:
                images[len(kept)] = part.read(row)
                kept.append(row)
            except UnreadableImageError as error:
                broken.append(str(error))
            report(progress, "reading images", row + 1, len(part))
        check_broken(broken, part.skippable, len(part))
        warn_broken(broken)
        labels = None if part.labels is None else part.labels[kept]
        texts = None if part.texts is None else tuple(part.texts[row] for row in kept)
        return ImageSet(images[: len(kept)], labels, self.class_names, texts)


def count_channels(records: Records, *, every: bool) -> int:
    """Return 1 if all images are grey, else 3.

    Args:
        records: The images.
        every: Whether to look at all of them, or at `PROBES` evenly spread.
    """
    number = len(records) if every else min(len(records), PROBES)
    for row in np.linspace(0, len(records) - 1, number).astype(np.int64):
        try:
            raw = records.read(int(row))
        except OSError:
            continue
        grey = raw.shape[2] == 1 if isinstance(raw, np.ndarray) else is_grey(raw)
        if grey is False:
            return 3
    return 1


def digest_rows(rows: Iterable[bytes]) -> str:
    """Return the SHA-256 of the rows, their lengths and their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{len(row)} ".encode() + row)
    return digest.hexdigest()
