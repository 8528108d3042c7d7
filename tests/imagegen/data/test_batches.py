"""Batches: one order, however many processes share it and wherever they start."""

import logging
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagegen.data import ImageSet, batch_rows, batches
from imagegen.images import UnreadableImageError
from rqtoolkit.errors import ArtifactError, ConfigError


@dataclass
class Faulty:
    """A set whose images show their row and, when augmented, a random number; some are broken."""

    length: int = 20
    broken: frozenset = frozenset()
    skippable: int = 0
    resolution: tuple = (2, 2)
    channels: int = 1
    class_names: tuple = tuple("ab")
    num_classes: int = 2
    texts: tuple | None = None
    labels: np.ndarray = field(init=False)

    def __post_init__(self):
        self.labels = np.arange(self.length) % 2

    def __len__(self):
        return self.length

    def read(self, row, *, generator=None):
        if row in self.broken:
            raise UnreadableImageError(f"image {row}")
        drawn = 0 if generator is None else int(generator.integers(256))
        return np.array([[row, drawn], [0, 0]], np.uint8)[..., None]

    def fingerprint(self):
        return "0"

    def to_memory(self, rows=None, *, progress=None):
        raise NotImplementedError


class Lengths:
    """Encodes a text as its length and its first letter."""

    def encode(self, texts):
        return torch.tensor([[len(text), ord(text[0])] for text in texts])


def memory_set(length, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (length, 3, 2, 1), np.uint8)
    return ImageSet(pixels, np.arange(length) % 2, tuple("ab"), **options)


def assert_equal(one, two):
    for name in ("images", "labels", "text", "rows"):
        first, second = getattr(one, name), getattr(two, name)
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)
    assert one.broken == two.broken


@given(
    st.integers(1, 30), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5)
)
def test_processes_and_parts_divide_the_rows_of_each_step(length, ranks, accumulate, size, seed):
    options = {
        "batch_size": ranks * accumulate * size,
        "steps": 4,
        "seed": seed,
        "accumulate": accumulate,
        "ranks": ranks,
    }
    data = memory_set(length)
    shares = [list(batches(data, rank=rank, **options)) for rank in range(ranks)]
    for step in range(4):
        parts = [shares[r][step * accumulate + a] for a in range(accumulate) for r in range(ranks)]
        together = torch.cat([part.rows for part in parts])
        assert torch.equal(together, batch_rows(length, len(together), step, seed))
        for part in parts:
            assert torch.equal(part.images, torch.from_numpy(data.images[part.rows.numpy()]))
            assert torch.equal(part.labels, torch.from_numpy(data.labels[part.rows.numpy()]))
        assert {len(part.rows) for part in parts} == {size}


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9))
def test_every_row_comes_once_a_pass(length, batch_size, seed):
    steps = -(-3 * length // batch_size)
    rows = torch.cat([batch_rows(length, batch_size, step, seed) for step in range(steps)])
    for number in range(3):
        whole_pass = rows[number * length : (number + 1) * length]
        assert sorted(whole_pass.tolist()) == list(range(length))


@given(st.integers(0, 7), st.integers(1, 2))
def test_a_later_start_gives_the_tail(start, accumulate):
    options = {"batch_size": 6, "steps": 7, "seed": 3, "accumulate": accumulate}
    data = Faulty(20, frozenset({4}), 1)
    whole = list(batches(data, **options))
    tail = list(batches(data, start_step=start, **options))
    assert len(tail) == (7 - start) * accumulate
    for one, two in zip(tail, whole[start * accumulate :], strict=True):
        assert_equal(one, two)


def test_augmentation_does_not_depend_on_who_reads():
    data = Faulty(20)
    options = {"batch_size": 12, "steps": 3, "seed": 5}
    alone = [batch.images for batch in batches(data, **options)]
    shared = [
        batch.images
        for step in range(3)
        for part in range(2)
        for rank in range(3)
        for batch in list(batches(data, accumulate=2, rank=rank, ranks=3, **options))[
            2 * step + part : 2 * step + part + 1
        ]
    ]
    assert torch.equal(torch.cat(alone), torch.cat(shared))
    drawn = torch.cat(alone)[:, 0, 1, 0]
    assert len(drawn.unique()) > 20  # 36 draws of 256
    other = next(batches(data, batch_size=12, steps=1, seed=6)).images[:, 0, 1, 0]
    assert not torch.equal(drawn[:12], other)


def test_half_of_the_images_in_memory_are_mirrored():
    data = memory_set(40, flip=True)
    seen = torch.cat([b.images for b in batches(data, batch_size=40, steps=10, seed=0)])
    rows = torch.cat([b.rows for b in batches(data, batch_size=40, steps=10, seed=0)])
    plain = torch.from_numpy(data.images[rows.numpy()])
    kept = (seen == plain).flatten(1).all(1)
    mirrored = (seen == plain.flip(2)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 160 < kept.sum() < 240  # 400 fair coins, four standard deviations


def test_workers_read_what_the_parent_would():
    # A forked worker would hang here: the parent has run k-means in faiss's threads.
    from rqtoolkit.functional.kmeans import kmeans

    kmeans(torch.randn(200, 4), 8)
    texts = tuple(f"{'x' * (row % 5)}y" for row in range(20))
    data = Faulty(20, frozenset({4, 5}), 2, texts=texts)
    options = {"batch_size": 6, "steps": 5, "seed": 3, "tokenizer": Lengths()}
    alone = list(batches(data, **options))
    ahead = list(batches(data, workers=2, **options))
    assert len(alone) == len(ahead) == 5
    for one, two in zip(alone, ahead, strict=True):
        assert_equal(one, two)


def test_broken_images_are_named_and_replaced_by_the_next_that_can_be_read(caplog):
    data = Faulty(6, frozenset({2, 3}), 2)
    with caplog.at_level(logging.WARNING, logger="imagegen.data"):
        first, second = batches(data, batch_size=6, steps=2, seed=0)
    for batch, step in ((first, 0), (second, 1)):
        asked = batch_rows(6, 6, step, 0)
        expected = torch.where((asked == 2) | (asked == 3), 4, asked)
        assert torch.equal(batch.rows, expected)
        assert torch.equal(batch.images[:, 0, 0, 0].long(), expected)
        assert torch.equal(batch.labels, expected % 2)
        assert dict(batch.broken) == {2: "image 2", 3: "image 3"}
    said = [record.message for record in caplog.records]
    assert sorted(said) == [  # once each, not once a pass
        "skipped an image that cannot be read: image 2",
        "skipped an image that cannot be read: image 3",
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_images_are_refused(workers):
    data = Faulty(30, frozenset({2, 9, 11, 20}), 3)
    message = r"image \d+; image \d+; image \d+ and 1 more cannot be read as an image; got 4 broken"
    with pytest.raises(ArtifactError, match=message):
        list(batches(data, batch_size=10, steps=3, seed=0, workers=workers))
    with pytest.raises(ArtifactError, match="got 1 broken of 3, where 0 may be skipped"):
        list(batches(Faulty(3, frozenset({0, 1, 2})), batch_size=1, steps=1, seed=0))


def test_batches_that_cannot_be_divided_are_refused():
    with pytest.raises(ConfigError, match=r"batch_size=10 must divide .* got 2 x 3. Choose a mult"):
        next(batches(memory_set(4), batch_size=10, steps=1, seed=0, ranks=2, accumulate=3))
