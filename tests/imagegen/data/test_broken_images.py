"""Images that cannot be read: counted once, over processes and resumptions."""

import json
import logging

import pytest
from test_batches import Faulty

from imagegen.data import BrokenImages, batches
from rqtoolkit.errors import ArtifactError

LENGTH = 30


def broken_set(*rows, skippable=2):
    return Faulty(LENGTH, frozenset(rows), skippable)


def read(data, path, steps, **shares):
    broken = BrokenImages(data, path)
    return list(batches(data, batch_size=10, steps=steps, seed=0, broken=broken, **shares))


def thirds():
    """The rows of each third of a pass."""
    return [batch.rows.tolist() for batch in read(broken_set(), None, 3)]


def test_a_resumed_pass_does_not_count_from_zero(tmp_path, caplog):
    first, second, _ = thirds()
    data, path = broken_set(first[2], first[7], second[4]), tmp_path / "unreadable.jsonl"
    read(data, path, 1)
    assert {json.loads(line)["row"] for line in path.read_text().splitlines()} == {
        first[2],
        first[7],
    }
    caplog.clear()
    with pytest.raises(ArtifactError, match="got 3 broken of 30, where 2 may be skipped"):
        read(data, path, 2, start_step=1)
    with pytest.raises(ArtifactError, match="got 3 broken of 30"):  # known before anything is read
        BrokenImages(data, path)
    data.skippable = 3
    with caplog.at_level(logging.WARNING, logger="imagegen.data"):
        read(data, path, 3)
    assert not caplog.records  # all were named before
    assert len(path.read_text().splitlines()) == 3


def test_processes_count_together(tmp_path):
    first, _, _ = thirds()
    data, path = broken_set(first[1], first[6], skippable=1), tmp_path / "unreadable.jsonl"
    shares = [
        batches(
            data,
            batch_size=10,
            steps=1,
            seed=0,
            rank=rank,
            ranks=2,
            broken=BrokenImages(data, path),
        )
        for rank in range(2)
    ]
    next(shares[0])
    with pytest.raises(ArtifactError, match=r"image \d+; image \d+ cannot .* got 2 broken"):
        next(shares[1])


def test_mended_images_count_no_more(tmp_path):
    path = tmp_path / "unreadable.jsonl"
    BrokenImages(broken_set(1, 2, 3, skippable=3), path).add({1: "one", 2: "two", 3: "three"})
    known = BrokenImages(broken_set(2, 4, 5), path)  # 1 and 3 can be read now
    known.add({4: "four"})
    with pytest.raises(ArtifactError, match=r"image 2; four; five cannot .* got 3 broken"):
        known.add({5: "five"})


def test_a_damaged_line_counts_for_nothing(tmp_path):
    path = tmp_path / "unreadable.jsonl"
    lines = [
        '{"row": 2, "image": "two"}',
        "[3]",
        '{"row": 99, "image": "beyond"}',
        '{"row": 4, "im',
    ]
    path.write_text("\n".join(lines))
    known = BrokenImages(broken_set(2, 3, 4, 5), path)
    known.add({3: "three"})
    with pytest.raises(ArtifactError, match="got 3 broken"):
        known.add({5: "five"})
