"""A run whose images are read from files as it goes, one of them damaged."""

import json

import numpy as np
import pytest
from PIL import Image
from test_imagegen_cli import TINY

from imagegen.config import load_config
from imagegen.jobs import train_run
from rqtoolkit.errors import ArtifactError


@pytest.fixture
def config(tmp_path):
    """Settings of a run on forty images, of which the 38th is empty."""
    images = tmp_path / "images"
    for number in range(40):
        folder = images / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (9, 12), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (images / "a" / "38.png").write_bytes(b"")
    return {
        **TINY,
        "data.source": "folder",
        "data.path": str(images),
        "data.crop": "zoom",
        "data.flip": True,
        "data.corrupt": 0.05,
        "data.held_out": 10,
    }


@pytest.mark.slow
def test_workers_change_nothing_about_a_run(tmp_path, caplog, config):
    train_run(load_config("digits", overrides=config), tmp_path / "alone")
    for workers, folder in ((1, "ahead"), (0, "again")):
        overrides = {**config, "data.workers": workers}
        run = train_run(load_config("digits", overrides=overrides), tmp_path / folder)
        for name in ("rqvae.safetensors", "rqtransformer.safetensors"):
            theirs = (tmp_path / "alone" / "checkpoints" / name).read_bytes()
            assert (run.checkpoints / name).read_bytes() == theirs
        [line] = (run.path / "unreadable.jsonl").read_text().splitlines()  # once for both stages
        assert "38.png" in json.loads(line)["image"]
    assert any("38.png" in record.message for record in caplog.records)
    split = json.loads((run.path / "split.json").read_text())
    assert split["classes"] == 2


def test_a_run_keeps_count_of_what_it_could_not_read(tmp_path, config):
    config |= {"stage1.batch_size": 40, "stage2.batch_size": 40}  # the first step meets all

    def train(share, *stages, resume=True):
        settings = load_config("digits", overrides={**config, "data.corrupt": share})
        return train_run(settings, tmp_path / "run", stages=stages, resume=resume)

    with pytest.raises(ArtifactError, match=r"38\.png .* got 1 broken of 30, where 0 may"):
        train(0.0, 1, resume=False)
    run = train(0.05, 1)  # as the message says
    before = run.metrics()
    with pytest.raises(ArtifactError, match=r"38\.png .* got 1 broken of 30, where 0 may"):
        train(0.0, 2)
    assert run.metrics() == before
