"""Image data: the door to every source, and batches whose order a seed fixes."""

from imagegen.data.batches import Batch, Task, Tasks, batch_rows, batches, read_tasks
from imagegen.data.broken import BrokenImages
from imagegen.data.opening import open_images
from imagegen.images import ImageData, ImageSet, to_float, to_uint8

__all__ = [
    "Batch",
    "BrokenImages",
    "ImageData",
    "ImageSet",
    "Task",
    "Tasks",
    "batch_rows",
    "batches",
    "open_images",
    "read_tasks",
    "to_float",
    "to_uint8",
]
