"""What the frozen autoencoder makes of the training images, on disk for stage 2 to read.

Hard targets need the codes alone, in the smallest integer that holds one. Soft targets and
stochastic codes follow from distances to the codewords, so they need the latents, as float16: it
rounds by at most 2⁻¹¹ of a value, where bfloat16 would round eight times as coarsely. A grid of 8×8
positions takes 512 bytes an image as four codes of 16384 entries, and 32 KiB as latents of 256
dimensions: 0.66 and 42 GB for a copy of the 1.28 million images of ImageNet.

The folder holds `cache.json`, which says what the cache was made from, and shards of consecutive
images, `COPY-SHARD.npy`. A shard is written whole or not at all, so that a build that was killed
goes on where it stopped.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagegen.autoencoder import RQVAE
from imagegen.data import BrokenImages, ImageData, Task, read_tasks
from imagegen.data.batches import TextEncoder
from imagegen.distributed import Ranks
from imagegen.encoding import EncodedBatch, encode_moved
from imagegen.shifts import conditions, draw_shifts
from imagegen.training import step_seed
from rqtoolkit.errors import ArtifactError, DataError
from rqtoolkit.functional.codes import smallest_dtype
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.io.atomic import atomic_path

__all__ = ["CodeCache"]

_READ_AT_ONCE = 256  # images


class CodeCache:
    """Codes or latents of so many augmented copies of every image.

    Args:
        folder: Where it lies. All processes have to see the same folder.
        autoencoder: Frozen RQ-VAE in eval mode.
        data: The images.
        kind: "codes", for hard targets, or "latents", for soft targets and stochastic codes.
        copies: Copies of every image.
        seed: Fixes the augmentation of every copy.
        reach: Pixels to move images by, at most.
        unmoved: Share of the images that is left in place.
        reading: What decides how `data` reads an image, besides its fingerprint.
        shard_images: Images of a shard: what a build that is killed loses at most.
    """

    def __init__(
        self,
        folder: str | Path,
        autoencoder: RQVAE,
        data: ImageData,
        *,
        kind: str,
        copies: int,
        seed: int,
        reach: int = 0,
        unmoved: float = 0.0,
        reading: Mapping[str, Any] | None = None,
        shard_images: int = 4096,
    ) -> None:
        self.folder, self.autoencoder, self.data = Path(folder), autoencoder, data
        self.kind, self.copies, self.seed = kind, copies, seed
        self.reach, self.unmoved, self.shard_images = reach, unmoved, shard_images
        quantizer = autoencoder.quantizer
        width, dtype = quantizer.dim, np.dtype("<f2")
        if kind == "codes":
            width, dtype = quantizer.depth, smallest_dtype(quantizer.codebook_sizes)
        # An unreadable image is replaced by another: a record says which one it is.
        values = ("values", dtype, (*autoencoder.grid, width))
        self.record = np.dtype([("row", "<i8"), ("shift", "<i2"), values])
        self._origin = {
            "kind": kind,
            "images": len(data),
            "copies": copies,
            "shard_images": shard_images,
            "record": str(self.record.descr),
            "autoencoder": _checksum(autoencoder),
            "data": data.fingerprint(),
            "augmentation": {
                "seed": seed,
                "reach": reach,
                "unmoved": unmoved,
                **(reading or {}),
            },
        }
        self._open = lru_cache(maxsize=None)(self._map)

    @property
    def bytes(self) -> int:
        """Size of the whole cache on disk, but for the heads of its files."""
        return self.record.itemsize * len(self.data) * self.copies

    def build(
        self,
        *,
        ranks: Ranks | None = None,
        workers: int = 0,
        broken: BrokenImages | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Encode what is missing, each process its share; what is there of another origin goes.

        Args:
            ranks: The processes; None is one alone.
            workers: Processes that read images ahead of each.
            broken: As for `imagegen.data.batches`.
            progress: Called as progress(description, done, total), first of all with the size.

        Raises:
            ArtifactError: If the disk has no room for it, or too many images cannot be read.
            DataError: If a latent is beyond the range of float16.
        """
        ranks = ranks or Ranks()
        ranks.together(lambda: self._prepare() if ranks.main else None)
        names = itertools.product(range(self.copies), range(self._shards))
        missing = [name for name in names if not self._path(*name).exists()]
        ranks.together(lambda: self._check_room(len(missing)))  # all have looked before one writes
        work = self._write_shards(missing[ranks.rank :: ranks.size], workers, broken)
        total = self.copies * self._shards
        description = (
            f"Encoding {len(self.data):,} images × {self.copies} as {self.kind}, "
            f"{self.bytes / 1e6:,.1f} MB"
        )
        for done in range(0, len(missing), ranks.size):
            report(progress, description, total - len(missing) + done, total)
            ranks.together(partial(next, work, None))  # one shard each, or the end
        report(progress, description, total, total)

    def read(self, rows: np.ndarray, copies: np.ndarray) -> np.ndarray:
        """Read records.

        Args:
            rows: Rows of the data set, shape (B,).
            copies: Which copy of each, shape (B,).

        Returns:
            Shape (B,), with the fields "values" (h, w, depth or dim), "shift", and "row", which is
            not the row asked for where that image could not be read and the next one stands in.

        Raises:
            ArtifactError: If a shard is missing or damaged.
        """
        records = np.empty(len(rows), self.record)
        for place, (row, copy) in enumerate(zip(rows.tolist(), copies.tolist(), strict=True)):
            shard, index = divmod(row, self.shard_images)
            records[place] = self._open(copy, shard)[index]
        return records

    def batches(
        self, tasks: Iterable[Task], *, tokenizer: TextEncoder | None = None
    ) -> Iterator[EncodedBatch]:
        """Read the batches of a training; a pass over the data reads one copy, the next another.

        Args:
            tasks: What each batch is made of, `imagegen.data.Tasks`.
            tokenizer: Encodes the texts; None leaves them out.

        Yields:
            A batch for each task.

        Raises:
            ArtifactError: If a shard is missing or damaged.
        """
        labels, texts = self.data.labels, self.data.texts
        for task in tasks:
            records = self.read(task.rows, task.numbers // len(self.data) % self.copies)
            rows, shifts = records["row"], torch.from_numpy(records["shift"].astype(np.int64))
            exact = np.int64 if self.kind == "codes" else np.float32
            if texts is not None and tokenizer is not None:
                cond: Tensor | None = tokenizer.encode([texts[row] for row in rows])
            else:
                known = None if labels is None else torch.from_numpy(labels[rows])
                cond = conditions(known, shifts, reach=self.reach)
            yield EncodedBatch(torch.from_numpy(records["values"].astype(exact)), cond)

    @property
    def _shards(self) -> int:
        """Number of shards of a copy."""
        return -(-len(self.data) // self.shard_images)

    def _path(self, copy: int, shard: int) -> Path:
        return self.folder / f"{copy:02d}-{shard:05d}.npy"

    def _prepare(self) -> None:
        """Make the folder, and clear it of what is not of this cache."""
        self.folder.mkdir(exist_ok=True)
        origin = self.folder / "cache.json"
        for path in self.folder.glob(".*.partial.*"):  # left by a process that was killed
            path.unlink()
        text = json.dumps(self._origin, indent=2) + "\n"
        if origin.exists() and origin.read_text(encoding="utf-8", errors="replace") == text:
            return
        for path in self.folder.glob("*.npy"):
            path.unlink()
        with atomic_path(origin) as temporary:  # last: until then the folder is still the old one's
            temporary.write_text(text, encoding="utf-8")

    def _check_room(self, missing: int) -> None:
        needed = min(missing * self.shard_images * self.record.itemsize, self.bytes)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ArtifactError(
                f"code cache: {self.folder} needs {needed / 1e9:,.1f} GB for {len(self.data):,} "
                f"images × {self.copies} as {self.kind}; got {free / 1e9:,.1f} GB free. Lower "
                f"stage2.cache, or make room."
            )

    def _write_shards(
        self, names: list[tuple[int, int]], workers: int, broken: BrokenImages | None
    ) -> Iterator[Path]:
        """Encode and write shards (copy, shard); yields the path of each when it is there."""
        tasks = [
            [Task(rows, copy * len(self.data) + rows) for rows in self._parts(shard)]
            for copy, shard in names
        ]
        reader = read_tasks(
            self.data,
            itertools.chain.from_iterable(tasks),
            seed=self.seed,
            workers=workers,
            broken=broken,
        )
        for (copy, shard), parts in zip(names, tasks, strict=True):
            records = np.empty(sum(len(part.rows) for part in parts), self.record)
            done = 0
            for batch in itertools.islice(reader, len(parts)):
                shifts = draw_shifts(
                    batch.rows, self.reach, unmoved=self.unmoved, seed=step_seed(self.seed, copy)
                )
                values = encode_moved(
                    self.autoencoder, batch.images, shifts, reach=self.reach, kind=self.kind
                )
                part = records[done : done + len(shifts)]
                part["row"], part["shift"] = batch.rows.numpy(), shifts.numpy()
                part["values"] = self._narrow(values)
                done += len(shifts)
            path = self._path(copy, shard)
            try:
                with atomic_path(path) as temporary:
                    np.save(temporary, records, allow_pickle=False)
            except OSError as error:
                raise ArtifactError(
                    f"code cache: {path} cannot be written; got {error.strerror or error}. Make "
                    f"room, or access, and go on with --resume: the shards before it stay."
                ) from error
            yield path

    def _parts(self, shard: int) -> list[np.ndarray]:
        """Return the rows of a shard as parts that are read and encoded at once."""
        first = shard * self.shard_images
        rows = np.arange(first, min(first + self.shard_images, len(self.data)))
        return np.split(rows, range(_READ_AT_ONCE, len(rows), _READ_AT_ONCE))

    def _narrow(self, values: Tensor) -> np.ndarray:
        """Return values in the type they are stored in."""
        if self.kind == "latents":
            values = values.half()
            if not values.isfinite().all():
                raise DataError(
                    f"code cache: latents must lie in the range of float16, up to 65504; got "
                    f"others from {self.autoencoder.grid} positions. Set stage2.cache to 0."
                )
        return values.cpu().numpy()

    def _map(self, copy: int, shard: int) -> np.ndarray:
        """Map a shard into memory."""
        path = self._path(copy, shard)
        rows = min(self.shard_images, len(self.data) - shard * self.shard_images)
        try:
            records = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(
                f"code cache: {path} cannot be read; got {error}. Remove it and train with "
                f"--resume: it is made again."
            ) from None
        if records.shape != (rows,) or records.dtype != self.record:
            raise ArtifactError(
                f"code cache: {path} must hold {rows} records; got shape {records.shape}. Remove "
                f"it and train with --resume: it is made again."
            )
        return np.asarray(records)


def _checksum(autoencoder: RQVAE) -> str:
    """Return the SHA-256 of a model's weights, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(autoencoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
