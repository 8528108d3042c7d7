"""Image data: the door to every source, and batches whose order a seed fixes."""

from imagegen.data.batches import Batch, batch_rows, batches
from imagegen.data.opening import load_images
from imagegen.images import ImageData, ImageSet, to_float, to_uint8

__all__ = [
    "Batch",
    "ImageData",
    "ImageSet",
    "batch_rows",
    "batches",
    "load_images",
    "to_float",
    "to_uint8",
]
