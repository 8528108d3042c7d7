"""Training that starts from finished models: what is taken, what refused, what recorded."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import contents, interrupt_at, small

from imagegen.jobs import load_models, train_run
from rqtoolkit.errors import ArtifactError, ConfigError

STILL = {
    "stage1.learning_rate": 1e-8,
    "stage2.learning_rate": 1e-8,
    "stage1.steps": 1,
    "stage1.warmup_steps": 0,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "source"
    train_run(small(), folder)
    return folder


def weights(folder, name):
    return load_file(folder / "checkpoints" / f"{name}.safetensors")


def test_both_stages_start_from_a_run(source, tmp_path):
    """Steps so small that nothing moves leave what the run started from."""
    config = small(init_from=str(source), seed=7, **STILL)
    run = train_run(config, tmp_path / "run")
    for name in ("rqvae", "rqtransformer"):
        before, after = weights(source, name), weights(run.path, name)
        moving = [k for k in before if "counts" in k or "tables" in k or "codebooks" in k]
        for key in before.keys() - set(moving):
            torch.testing.assert_close(after[key], before[key], atol=1e-6, rtol=0, msg=key)
    # the transformer reads the codewords of its own stage 1, which have moved on
    autoencoder, transformer = load_models(run)
    codebooks = transformer.embedding.codebooks
    assert torch.equal(codebooks, autoencoder.quantizer.codebooks.expand_as(codebooks))
    recorded = json.loads((run.path / "initial.json").read_text())
    model = source / "checkpoints" / "rqvae.safetensors"
    assert recorded["stage1"] == {
        "path": str(model),
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
    }
    assert recorded.keys() == {"stage1", "stage2"}
    assert run.config.init_from == str(source)


def test_the_start_is_not_that_of_random_weights_and_resumes_to_the_bit(source, tmp_path):
    config = small(init_from=str(source))
    train_run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "run", progress=interrupt_at(2, 1))
    train_run(config, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    first = contents(tmp_path / "run")["metrics"][0]["loss"]
    assert first < contents(source)["metrics"][0]["loss"]


def test_a_model_file_starts_its_own_stage_alone(source, tmp_path):
    model = source / "checkpoints" / "rqvae.safetensors"
    changed = {"transformer.dim": 32}  # of no concern to it
    run = train_run(small(init_from=str(model), **STILL, **changed), tmp_path / "run")
    assert json.loads((run.path / "initial.json").read_text()).keys() == {"stage1"}


def test_another_architecture_is_refused_and_its_tensors_named(source, tmp_path):
    with pytest.raises(ConfigError, match=r"stage 1 is configured for; got .*encoder\.conv_in"):
        train_run(small(init_from=str(source), **{"autoencoder.channels": 8}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    labels = np.arange(40) % 3
    np.savez(tmp_path / "a.npz", x_train=pixels, x_test=pixels, y_train=labels, y_test=labels)
    data = {"data.source": "npz", "data.path": str(tmp_path / "a.npz"), "stage2.shift": 0}
    with pytest.raises(ConfigError, match=r"stage 2 is configured for; got .*weight has shape"):
        train_run(small(init_from=str(source), **data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_holds_no_model_is_refused(source, tmp_path):
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"nothing")
    state = source / "checkpoints" / "stage1-0000006.safetensors"
    for path, message in (
        (tmp_path / "empty", r"has no finished stage 1; got no checkpoints/rqvae\.safetensors"),
        (tmp_path / "absent", "has no finished stage 1"),
        (damaged, "is not readable"),
        (state, r"holds no finished model; got class='Training'"),
    ):
        with pytest.raises(ArtifactError, match=message):
            train_run(small(init_from=str(path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_source_that_has_changed_is_noticed(source, tmp_path):
    copied = tmp_path / "source"
    shutil.copytree(source, copied)
    config = small(init_from=str(copied))
    run = train_run(config, tmp_path / "run", stages=(1,))
    for path in run.checkpoints.glob("stage1-*"):  # as if killed before the first checkpoint
        path.unlink()
    other = train_run(small(seed=5), tmp_path / "other", stages=(1,))
    shutil.copy(other.autoencoder_path, copied / "checkpoints" / "rqvae.safetensors")
    with pytest.raises(ArtifactError, match=r"is not the file that .* was started from"):
        train_run(config, tmp_path / "run", stages=(1,), resume=True)


def test_stage_2_alone_takes_stage_1_as_it_is(source, tmp_path):
    model = source / "checkpoints" / "rqvae.safetensors"
    config = small(init_from=str(model), seed=5)
    run = train_run(config, tmp_path / "run", stages=(2,))
    assert run.autoencoder_path.read_bytes() == model.read_bytes()
    assert {m["stage"] for m in run.metrics()} == {2}
    assert json.loads((run.path / "initial.json").read_text()).keys() == {"stage1"}
    autoencoder, transformer = load_models(run)
    codebooks = transformer.embedding.codebooks
    assert torch.equal(codebooks, autoencoder.quantizer.codebooks.expand_as(codebooks))
    gone = small(init_from=str(tmp_path / "copy.safetensors"), seed=5)
    shutil.copy(model, tmp_path / "copy.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train_run(gone, tmp_path / "again", stages=(2,), progress=interrupt_at(2, 1))
    assert (tmp_path / "again" / "checkpoints" / "rqvae.safetensors").is_file()


def test_stage_2_alone_needs_a_fitting_stage_1(source, tmp_path):
    model = source / "checkpoints" / "rqvae.safetensors"
    other = small(init_from=str(model), **{"quantizer.codebook_size": 16})
    with pytest.raises(ConfigError, match="not of the architecture that stage 1"):
        train_run(other, tmp_path / "run", stages=(2,))
    prior = str(source / "checkpoints" / "rqtransformer.safetensors")
    with pytest.raises(ArtifactError, match=r"stage 1 of .* is not finished"):
        train_run(small(init_from=prior), tmp_path / "run", stages=(2,))
    assert not (tmp_path / "run").exists()
