"""A run whose images are read from files as it goes, one of them damaged."""

import json

import numpy as np
import pytest
from PIL import Image
from test_imagegen_cli import TINY

from imagegen.config import load_config
from imagegen.jobs import train_run


@pytest.mark.slow
def test_workers_change_nothing_about_a_run(tmp_path, caplog):
    images = tmp_path / "images"
    for number in range(40):
        folder = images / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (9, 12), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (images / "a" / "38.png").write_bytes(b"")
    config = {
        **TINY,
        "data.source": "folder",
        "data.path": str(images),
        "data.crop": "zoom",
        "data.flip": True,
        "data.corrupt": 0.05,
        "data.held_out": 10,
    }
    train_run(load_config("digits", overrides=config), tmp_path / "alone")
    for workers, folder in ((1, "ahead"), (0, "again")):
        overrides = {**config, "data.workers": workers}
        run = train_run(load_config("digits", overrides=overrides), tmp_path / folder)
        for name in ("rqvae.safetensors", "rqtransformer.safetensors"):
            theirs = (tmp_path / "alone" / "checkpoints" / name).read_bytes()
            assert (run.checkpoints / name).read_bytes() == theirs
    assert any("38.png" in record.message for record in caplog.records)
    split = json.loads((run.path / "split.json").read_text())
    assert split["classes"] == 2
