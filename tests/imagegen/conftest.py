"""Fixtures of the image generator's tests."""

import numpy as np
import pytest
import torch
from tiny_runs import TINY_MODELS

from imagegen.config import load_config
from imagegen.images import ImageSet
from imagegen.pictures import draw_grid
from imagegen.runs import Run
from imagegen.split import write_split
from imagegen.stage1 import build_autoencoder
from imagegen.stage2 import build_transformer

TINY = {
    **TINY_MODELS,
    "transformer.depth_layers": 1,
    "transformer.label_dropout": 0.1,
}


@pytest.fixture(scope="module")
def quick_pictures():
    """Draw charts of reports as one grey square: they take most of an evaluation's time."""
    png = draw_grid(np.full((1, 1, 4, 4, 1), 128, np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_losses", "draw_usage", "draw_rate_distortion"):
            patch.setattr(f"imagegen.report.write.{name}", lambda *_, **__: png)
        yield


@pytest.fixture(scope="session")
def untrained_run():
    """Return a function that makes a finished run of random weights, in no time.

    It takes the folder, the number of classes or None, a tokenizer for a run of texts, and
    settings. Logits are made to differ, so that settings of sampling matter.
    """

    def make(folder, *, classes=3, tokenizer=None, **overrides):
        dropout = {} if classes else {"transformer.label_dropout": 0.0}
        config = load_config("digits", overrides=TINY | {"stage2.shift": 0} | dropout | overrides)
        run = Run.create(folder, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            autoencoder = build_autoencoder(config, image_channels=1)
            transformer = build_transformer(config, autoencoder, classes, tokenizer=tokenizer)
            for parameter in transformer.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
        autoencoder.eval().save(run.autoencoder_path)
        transformer.eval().save(run.transformer_path)
        labels = None if classes is None else np.arange(12) % classes
        names = None if classes is None else tuple(map(str, range(classes)))
        images = ImageSet(np.zeros((12, 8, 8, 1), np.uint8), labels, names)
        write_split(folder, images, images)
        return run

    return make
