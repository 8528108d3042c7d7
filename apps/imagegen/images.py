"""Sets of uint8 images, in memory or elsewhere, and the way to and from the floats networks see."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from rqtoolkit.errors import ArtifactError, DataError, ShapeError
from rqtoolkit.functional.progress import Progress

__all__ = ["ImageData", "ImageSet", "UnreadableImageError", "to_float", "to_uint8"]


class UnreadableImageError(ArtifactError):
    """One image of a set cannot be read; the message is its name and the reason."""


class ImageData(Protocol):
    """Images of one size that are read row by row, wherever they lie.

    Every source is a table with numbered rows. So the order of a training is a function of a seed,
    and a run resumes in the middle of an epoch with the images it would have seen.
    """

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def channels(self) -> int:
        """1 for greyscale, 3 for RGB."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class of each image, shape (N,), int64; None for images without classes."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name a class, in the order of the labels; None without classes."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without labels."""

    @property
    def texts(self) -> Sequence[str] | None:
        """A text for each image; None for images without."""

    @property
    def skippable(self) -> int:
        """Unreadable images that are passed over before the set is refused."""

    def __len__(self) -> int: ...

    def read(self, row: int, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """Return one image, shape (H, W, C), uint8.

        Args:
            row: Row of the set.
            generator: Draws how the image is cut out and mirrored, where the set says so; None
                gives the central square as it is.

        Raises:
            UnreadableImageError: If there is no image to be had.
        """

    def fingerprint(self) -> str:
        """Return hexadecimal digits that change when the set does."""

    def to_memory(
        self, rows: np.ndarray | None = None, *, progress: Progress | None = None
    ) -> ImageSet:
        """Return the images of these rows, or of all, as an `ImageSet` of central squares."""


@dataclass(frozen=True)
class ImageSet:
    """Images in memory, with their classes and texts where they have any.

    Attributes:
        images: Shape (N, H, W, C), uint8, C is 1 or 3.
        labels: Class of each image, shape (N,), int64; None for images without classes.
        class_names: One name a class, in the order of the labels; None without classes.
        texts: A text for each image; None for images without.
        flip: Whether every other image is mirrored when it is read for training.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ShapeError(
                f"ImageSet: images must be (N, H, W, C) with C 1 or 3; got shape {images.shape}. "
                "Add the channel axis with images[..., None]."
            )
        if images.dtype != np.uint8:
            raise DataError(
                f"ImageSet: images must be uint8; got {images.dtype}. "
                "Convert images in [-1, 1] with to_uint8."
            )
        if self.texts is not None and len(self.texts) != len(images):
            raise ShapeError(
                f"ImageSet: texts must be one for each of {len(images)} images; "
                f"got {len(self.texts)}. Drop what has no partner."
            )
        if labels is None:
            return
        if labels.shape != (len(images),):
            raise ShapeError(
                f"ImageSet: labels must be one for each of {len(images)} images; "
                f"got shape {labels.shape}. Drop what has no partner."
            )
        if labels.dtype != np.int64:
            raise DataError(
                f"ImageSet: labels must be int64; got {labels.dtype}. Use labels.astype('int64')."
            )
        if self.class_names is None or (
            len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names)
        ):
            raise DataError(
                f"ImageSet: class_names={self.class_names} does not name every label; got labels "
                f"{np.unique(labels).tolist()[:20]}. Number the classes from 0 and name each."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def channels(self) -> int:
        """1 for greyscale, 3 for RGB."""
        return self.images.shape[3]

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None without labels."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def skippable(self) -> int:
        """None: what is in memory was read."""
        return 0

    def read(self, row: int, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """Return one image, shape (H, W, C), uint8, mirrored at random if the set says so."""
        image = self.images[row]
        if self.flip and generator is not None and generator.random() < 0.5:
            return image[:, ::-1]
        return image

    def fingerprint(self) -> str:
        """Return the SHA-256 of the shape, the pixels, the labels and the texts."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        for text in self.texts or ():
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()

    def to_memory(
        self, rows: np.ndarray | None = None, *, progress: Progress | None = None
    ) -> ImageSet:
        """Return the images of these rows, or all of them."""
        del progress  # there is nothing to wait for
        return self if rows is None else self.subset(rows)

    def subset(self, rows: np.ndarray | slice) -> ImageSet:
        """Return the images of these rows with their labels and texts."""
        labels = None if self.labels is None else self.labels[rows]
        texts = None
        if self.texts is not None:
            texts = tuple(self.texts[row] for row in np.arange(len(self))[rows])
        return ImageSet(self.images[rows], labels, self.class_names, texts, self.flip)


def to_float(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Convert uint8 images (N, H, W, C) to float32 (N, C, H, W) in [-1, 1].

    Raises:
        ShapeError: If images does not have four axes.
        DataError: If images is not uint8.
    """
    images = torch.as_tensor(images)
    if images.ndim != 4:
        raise ShapeError(
            f"to_float: images must be (N, H, W, C); got shape {tuple(images.shape)}. "
            "Add the axes that are missing."
        )
    if images.dtype != torch.uint8:
        raise DataError(f"to_float: images must be uint8; got {images.dtype}. Pass the raw images.")
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Convert float images (N, C, H, W) in [-1, 1] to uint8 (N, H, W, C), clipped and rounded.

    The inverse of `to_float` to the bit; rounding is to the nearest level, halves to even.

    Raises:
        ShapeError: If images does not have four axes.
    """
    if images.ndim != 4:
        raise ShapeError(
            f"to_uint8: images must be (N, C, H, W); got shape {tuple(images.shape)}. "
            "Add the axes that are missing."
        )
    levels = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()
