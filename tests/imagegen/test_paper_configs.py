"""The configurations of the paper: they load, build what was published, and say what to expect."""

import re
from types import SimpleNamespace

import pytest
import torch

from imagegen.config import load_config, shipped_configs
from imagegen.stage1 import build_autoencoder, build_discriminator
from imagegen.stage2 import build_transformer

# millions of parameters, classes, epochs of stage 2, total batch, FID
PUBLISHED = {
    "ffhq256_355m": (355.39, None, 200, 128, "10.38"),
    "lsun_church256_370m": (370.09, None, 300, 256, "7.45"),
    "lsun_cat256_612m": (612.06, None, 100, 2048, "8.64"),
    "lsun_bedroom256_612m": (612.06, None, 100, 2048, "3.04"),
    "imagenet256_480m": (480.92, 1000, 100, 2048, "15.72"),
    "imagenet256_821m": (820.90, 1000, 100, 2048, "13.11"),
    "imagenet256_1400m": (1387.53, 1000, 100, 2048, "11.56"),
    "imagenet256_3800m": (3822.49, 1000, 100, 2048, "7.55"),
    "cc3m256_654m": (654.06, None, 100, 2048, "12.33"),
}
IMAGES = {
    "imagenet": 1_281_167,
    "ffhq": 60_000,
    "lsun_church": 126_227,
    "lsun_cat": 1_657_266,
    "lsun_bedroom": 3_033_042,
    "cc3m": 3_318_333,
}
OURS = {"cifar10", "digits", "fashion_mnist", "lpc64"}


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_every_shipped_configuration_is_accounted_for():
    assert set(shipped_configs()) == OURS | set(PUBLISHED)
    for name in shipped_configs():
        config = load_config(name)
        for stage in (config.stage1, config.stage2):
            assert stage.warmup_steps <= stage.steps


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_are_the_published_ones(name):
    parameters, classes, epochs, batch, _ = PUBLISHED[name]
    config = load_config(name)
    tokenizer = None
    if config.data.tokenizer is not None:
        tokenizer = SimpleNamespace(vocabulary=16384, length=32)
    with torch.random.fork_rng(), torch.device("meta"):
        autoencoder = build_autoencoder(config, image_channels=3)
        transformer = build_transformer(config, autoencoder, classes, tokenizer=tokenizer)
        discriminator = build_discriminator(config, image_channels=3)
    assert round(millions(transformer), 2) == parameters
    assert round(millions(autoencoder.encoder), 1) == 41.1
    assert round(millions(autoencoder.decoder), 1) == 59.0
    assert (autoencoder.grid, transformer.depth) == ((8, 8), 4)
    assert discriminator is not None
    images = IMAGES[next(data for data in IMAGES if name.startswith(data))]
    assert config.stage2.batch_size == batch
    assert config.stage2.steps == epochs * (images // batch)
    passes = config.stage1.steps * config.stage1.batch_size / images
    expected = {"ffhq256_355m": 150, "imagenet256_3800m": 50}.get(
        name, 10 if name.startswith("imagenet") else 1
    )
    assert passes == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", [*PUBLISHED, *sorted(OURS)])
def test_headers_say_what_to_type_and_what_to_expect(name):
    text = shipped_configs()[name].read_text(encoding="utf-8")
    header = " ".join(re.findall(r"^# ?(.*)$", text.split("\ndata:")[0], re.MULTILINE))
    command = "rqtool demo" if name == "digits" else f"rqtool imagegen train {name} "
    assert command in header
    assert max(map(len, text.splitlines())) <= 120
    if name in PUBLISHED:
        for words in ("Hardware:", "Expected time", "Published result", PUBLISHED[name][-1]):
            assert words in header
