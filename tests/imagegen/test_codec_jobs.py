"""Compressing and decompressing through the commands, on a tiny run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import TINY_MODELS
from typer.testing import CliRunner

from imagegen.cli import app
from imagegen.codec_jobs import compress_images, decompress_images
from imagegen.config import load_config
from imagegen.data import to_uint8
from imagegen.jobs import load_models, train_run
from imagegen.reconstruct import encode_images
from imagegen.runs import Run
from imagegen.user_images import read_user_images
from rqtoolkit.errors import ArtifactError, ConfigError

TINY = {
    **TINY_MODELS,
    "stage1.steps": 4,
    "stage1.batch_size": 8,
    "stage2.steps": 4,
    "stage2.batch_size": 8,
    "stage2.shift": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec") / "run"
    train_run(load_config("digits", overrides=TINY), folder)
    return Run.open(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(5):
        pixels = generator.integers(0, 256, (12, 9 + number), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_images_come_back_as_their_reconstructions(run, images, tmp_path):
    packed, out = tmp_path / "images.rqc", tmp_path / "out"
    figures = json.loads(invoke("compress", run.path, images, "--out", packed, "--json"))
    assert figures["images"] == 5
    assert figures["bytes"] == packed.stat().st_size
    assert figures["bytes"] <= 1.02 * figures["model_bits"] / 8 + 16
    assert figures["pixel_bytes"] == 5 * 8 * 8
    assert figures["fixed_bits"] == 5 * 4 * 4 * 2 * 3
    assert "5 images" in invoke("decompress", run.path, packed, "--out", out)
    autoencoder, _ = load_models(run)
    codes = np.load(out / "codes.npy")
    shown = [np.asarray(Image.open(out / f"{number:05d}.png")) for number in range(5)]
    decoded = to_uint8(autoencoder.decode(torch.from_numpy(codes)))
    np.testing.assert_array_equal(np.stack(shown), decoded[..., 0])
    assert (out / "grid.png").is_file()


def test_codes_are_those_of_the_images(run, images, tmp_path):
    autoencoder, _ = load_models(run)
    pixels = read_user_images([images], resolution=8, channels=1)
    compress_images(run, [images], tmp_path / "a.rqc", batch_size=2)
    assert decompress_images(run, tmp_path / "a.rqc", tmp_path / "out") == 5
    expected = encode_images(autoencoder, pixels).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "codes.npy"), expected)


def test_a_label_may_be_named(run, images, tmp_path):
    free = compress_images(run, [images], tmp_path / "a.rqc")
    told = [compress_images(run, [images], tmp_path / "b.rqc", label=c) for c in range(10)]
    assert free["model_bits"] <= min(figures["model_bits"] for figures in told) + 1e-3
    for label in (-1, 10):
        with pytest.raises(ConfigError, match="0 to 9"):
            compress_images(run, [images], tmp_path / "c.rqc", label=label)
    with pytest.raises(ConfigError, match="without texts"):
        compress_images(run, [images], tmp_path / "c.rqc", text="a nine")
    assert not (tmp_path / "c.rqc").exists()


def test_what_is_no_compressed_file_is_refused(run, images, tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        decompress_images(run, tmp_path / "absent.rqc", tmp_path / "out")
    with pytest.raises(ArtifactError, match="none of compressed images"):
        decompress_images(run, images / "0.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtifactError):
        compress_images(run, [tmp_path / "absent"], tmp_path / "a.rqc")
