"""Training of stage 1 with every loss on, through the run folder it leaves."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagegen.autoencoder import RQVAE
from imagegen.config import load_config
from imagegen.jobs import train_run
from imagegen.runs import Run
from rqtoolkit.errors import ArtifactError, ConfigError

TINY = {
    "data.resolution": 16,
    "autoencoder.channels": 4,
    "autoencoder.multipliers": [1, 2],
    "autoencoder.attention": [8],
    "autoencoder.latent_channels": 8,
    "autoencoder.code_dim": 4,
    "quantizer.depth": 2,
    "quantizer.codebook_size": 8,
    "stage1.steps": 6,
    "stage1.batch_size": 4,
    "stage1.accumulate": 2,
    "stage1.warmup_steps": 2,
    "stage1.log_every": 1,
    "stage1.checkpoint_every": 2,
    "stage1.sample_every": 3,
    "stage1.weight_average": 0.9,
    "stage1.checkpointing": True,
    "stage1.discriminator.weight": 0.75,
    "stage1.discriminator.channels": 4,
    "stage1.discriminator.start": 2,
    "stage1.discriminator.ramp": 2,
    "stage1.discriminator.penalty": "lecam",
    "stage1.discriminator.penalty_weight": 0.01,
    "stage1.discriminator.augment": ["color", "translation", "cutout"],
}


def tiny(**more):
    return load_config("digits", overrides={**TINY, **more})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files in the layout of VGG16 and of LPIPS, with random weights."""
    generator = torch.Generator().manual_seed(0)
    vgg, width, number = {}, 3, 0
    for stage in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for outputs in stage:
            draw = torch.randn(outputs, width, 3, 3, generator=generator)
            vgg[f"features.{number}.weight"] = draw * (2 / (9 * width)) ** 0.5
            vgg[f"features.{number}.bias"] = torch.zeros(outputs)
            width, number = outputs, number + 2
        number += 1
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.ones(1, n, 1, 1) for i, n in enumerate(widths)}
    folder = tmp_path_factory.mktemp("lpips")
    save_file(vgg, folder / "vgg.safetensors")
    save_file(heads, folder / "heads.safetensors")
    return {
        "stage1.perceptual.weight": 1.0,
        "stage1.perceptual.vgg": str(folder / "vgg.safetensors"),
        "stage1.perceptual.heads": str(folder / "heads.safetensors"),
    }


def test_it_trains_against_lpips_and_a_discriminator(tmp_path, weights):
    said = []
    config = tiny(**weights)
    train_run(config, tmp_path / "run", stages=(1,), progress=lambda *args: said.append(args[0]))
    run = Run.open(tmp_path / "run")
    lines = [m for m in run.metrics() if "loss" in m]
    always = {"squared_error", "perceptual", "commitment", "codebook", "usage", "perplexity"}
    later = {"adversarial", "discriminator", "adaptive_weight", "logits_real", "logits_fake"}
    for line in lines:
        assert always <= set(line)
        assert (later | {"lecam"} <= set(line)) == (line["step"] > 2)
        assert math.isfinite(line["loss"])
    model = RQVAE.load(run.autoencoder_path)
    assert model.encode(torch.zeros(1, 1, 16, 16)).shape == (1, 8, 8, 2)
    record = json.loads((run.path / "perceptual.json").read_text())
    assert [file["path"] for file in record] == list(weights.values())[1:]
    assert all(any(file["sha256"][:16] in text for text in said) for file in record)
    assert len(list(run.samples.glob("reconstructions-*.png"))) == 2


def test_the_discriminator_goes_on_where_it_was(tmp_path):
    """Its weights, its optimizer and its moving means are part of a checkpoint."""
    train_run(tiny(), tmp_path / "whole", stages=(1,))

    class StoppedError(Exception):
        pass

    def stop(description, done, _total):
        if description.startswith("Stage 1") and done == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_run(tiny(), tmp_path / "run", stages=(1,), progress=stop)
    train_run(tiny(), tmp_path / "run", stages=(1,), resume=True)
    states = [
        load_file(next((tmp_path / name / "checkpoints").glob("stage1*.safetensors")))
        for name in ("whole", "run")
    ]
    assert any("discriminator" in name and "averages" in name for name in states[0])
    assert any("optimizer" in name and "discriminator" in name for name in states[0])
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_lpips_that_cannot_be_had_is_refused_before_a_folder_is_made(tmp_path, weights):
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"stage1\.perceptual\.vgg=None must be a file"):
        train_run(tiny(**{"stage1.perceptual.weight": 1.0}), run, stages=(1,))
    absent = {**weights, "stage1.perceptual.heads": "absent.pth"}
    with pytest.raises(ConfigError, match=r"stage1\.perceptual\.heads=.*absent\.pth must be"):
        train_run(tiny(**absent), run, stages=(1,))
    small = {**weights, "data.resolution": 8, "autoencoder.attention": []}
    changes = {"weight": 0.0, "penalty": "none", "penalty_weight": 0.0, "augment": []}
    alone = {f"stage1.discriminator.{name}": value for name, value in changes.items()}
    with pytest.raises(ConfigError, match="needs images of 16 pixels"):
        train_run(tiny(**small, **alone), run, stages=(1,))
    with pytest.raises(ConfigError, match="PatchDiscriminator: layers=2 needs images of 12"):
        train_run(tiny(**{"data.resolution": 8, "autoencoder.attention": []}), run, stages=(1,))
    assert not run.exists()
    swapped = {**weights, "stage1.perceptual.vgg": weights["stage1.perceptual.heads"]}
    with pytest.raises(ArtifactError, match=r"no features\.0\.weight"):
        train_run(tiny(**swapped), run, stages=(1,))
    assert not run.exists()


def test_a_run_keeps_its_weights_of_lpips(tmp_path, weights):
    weights = {**weights, "stage1.steps": 1, "stage1.warmup_steps": 0}
    config = tiny(**weights)
    train_run(config, tmp_path / "run", stages=(1,))
    changed = load_file(weights["stage1.perceptual.heads"])
    changed["lin0.model.1.weight"] += 1
    save_file(changed, tmp_path / "other.safetensors")
    other = tiny(**{**weights, "stage1.perceptual.heads": str(tmp_path / "other.safetensors")})
    with pytest.raises(ConfigError, match="started with other weights of LPIPS"):
        train_run(other, tmp_path / "run", stages=(1,), resume=True)
