"""A run goes on and is scored with the images it began with, or not at all."""

import json

import numpy as np
import pytest
from test_imagegen_cli import TINY

from imagegen.config import load_config
from imagegen.images import ImageSet
from imagegen.jobs import train_run
from imagegen.runs import Run
from imagegen.scoring import evaluate_run
from imagegen.split import check_split, read_split, write_split
from rqtoolkit.errors import ArtifactError, DataError


def images(number, *, seed=0, classes=2):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (number, 8, 8, 1), np.uint8)
    return ImageSet(pixels, np.arange(number) % classes, tuple("abc"[:classes]))


def write_npz(path, train, held_out):
    np.savez(
        path,
        x_train=train.images,
        y_train=train.labels,
        x_test=held_out.images,
        y_test=held_out.labels,
    )


def config_for(path):
    data = {"data.source": "npz", "data.path": str(path)}
    return load_config("digits", overrides={**TINY, **data})


def test_every_change_of_the_images_is_noticed(tmp_path):
    train, held_out = images(6), images(4, seed=1)
    check_split(tmp_path, train, held_out)  # runs from before split.json take any
    assert read_split(tmp_path) is None
    write_split(tmp_path, train, held_out)
    check_split(tmp_path, images(6), images(4, seed=1))
    assert read_split(tmp_path)["classes"] == 2
    moved = train.subset(np.array([1, 0, 2, 3, 4, 5]))
    other_label = ImageSet(train.images, 1 - train.labels, train.class_names)
    for one, two, name in (
        (moved, held_out, "train"),
        (other_label, held_out, "train"),
        (train, images(5, seed=1), "held_out"),
        (held_out, train, "train, held_out"),
        (ImageSet(train.images, train.labels, tuple("abc")), held_out, "classes"),
    ):
        with pytest.raises(DataError, match=f"differ in {name}"):
            check_split(tmp_path, one, two)
    (tmp_path / "split.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is damaged"):
        check_split(tmp_path, train, held_out)


def test_neither_resuming_nor_stage_2_nor_evaluation_takes_other_images(tmp_path):
    path, folder = tmp_path / "images.npz", tmp_path / "run"
    train, held_out = images(30), images(20, seed=1)
    write_npz(path, train, held_out)
    config = config_for(path)
    train_run(config, folder, stages=(1,))
    write_npz(path, held_out, train)  # what was held out would be trained on
    before = {p: p.read_bytes() for p in folder.rglob("*.*")}
    for stages in ((1, 2), (2,)):
        with pytest.raises(DataError, match="was trained on other images"):
            train_run(config, folder, stages=stages, resume=True)
    assert {p: p.read_bytes() for p in folder.rglob("*.*")} == before
    moved = tmp_path / "moved.npz"  # the same images elsewhere are welcome
    write_npz(moved, train, held_out)
    run = train_run(config_for(moved), folder, stages=(2,), resume=True)
    assert run.config.data.path == str(moved)
    write_npz(moved, held_out, train)
    with pytest.raises(DataError, match="was trained on other images"):
        evaluate_run(Run.open(folder))


def test_runs_from_before_split_json_still_resume(tmp_path):
    folder = tmp_path / "run"
    config = load_config("digits", overrides=TINY)
    train_run(config, folder, stages=(1,))
    recorded = json.loads((folder / "split.json").read_text())
    (folder / "split.json").unlink()
    train_run(config, folder, resume=True)
    assert json.loads((folder / "split.json").read_text()) == recorded
