"""Two processes over gloo train what one trains, under DDP and FSDP, and end together."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TINY_MODELS

from imagegen.config import dump_config, load_config
from imagegen.jobs import train_run
from imagegen.runs import Run

SCRIPT = Path(__file__).with_name("two_process_script.py")
TINY = {
    **TINY_MODELS,
    "autoencoder.norm_groups": 1,  # a group of one channel cancels its bias: Adam divides noise
    "quantizer.restart_threshold": 0.0,  # revived entries come from the first process's images
    "transformer.dropout": 0.0,
    "stage2.soft_targets": False,
    "stage2.stochastic_codes": False,
    "stage2.shift": 1,
    "stage1.accumulate": 2,
    **{
        f"{stage}.{key}": value
        for stage in ("stage1", "stage2")
        for key, value in {
            "steps": 6,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "log_every": 1,
            "checkpoint_every": 2,
            "sample_every": 3,
        }.items()
    },
}

pytestmark = pytest.mark.slow


def write_config(path, **more):
    config = load_config("digits", overrides={**TINY, **more})
    path.write_text(dump_config(config))
    return config


def launch(*command, check=True):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*torchrun, *map(str, command)], check=False, capture_output=True, text=True, timeout=250
    )
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


def assert_close(one, other):
    """Models, states and losses are equal to rounding."""
    names = [path.name for path in sorted((one / "checkpoints").iterdir())]
    assert names == [path.name for path in sorted((other / "checkpoints").iterdir())]
    for name in names:
        expected, found = (load_file(folder / "checkpoints" / name) for folder in (one, other))
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            scale = float(tensor.double().abs().max()) if tensor.numel() else 0.0
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-3 * scale, msg=key)
    first, second = (Run.open(folder).metrics() for folder in (one, other))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a["stage"], a["step"], a.get("loss", 0.0)) == (
            b["stage"],
            b["step"],
            pytest.approx(b.get("loss", 0.0), rel=1e-4),
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_run(write_config(folder / "config.yaml"), folder / "run")
    return folder


def test_two_processes_train_what_one_does(alone, tmp_path):
    rqtool = Path(sys.executable).with_name("rqtool")
    arguments = ("imagegen", "train", alone / "config.yaml", "--out", tmp_path / "run")
    result = launch("--no-python", rqtool, *arguments)
    assert result.stdout == f"Trained: {tmp_path / 'run'}, by 2 processes\n"
    assert_close(alone / "run", tmp_path / "run")


def test_fsdp_trains_what_one_does_and_any_number_goes_on(alone, tmp_path):
    config = tmp_path / "config.yaml"
    fsdp = write_config(config, name="config", parallel="fsdp")
    shutil.copytree(alone / "run", tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*2-*"):
        path.unlink()
    for path in (tmp_path / "run" / "checkpoints").glob("rqtransformer*"):
        path.unlink()
    assert launch(SCRIPT, config, tmp_path / "run", "stop", "2", check=False).returncode
    assert (tmp_path / "run" / "checkpoints" / "stage2-0000004.safetensors").exists()
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    launch(SCRIPT, config, tmp_path / "run", "go", "2")
    assert_close(alone / "run", tmp_path / "run")
    train_run(fsdp, tmp_path / "other", stages=(2,), resume=True)  # one process takes over
    assert_close(alone / "run", tmp_path / "other")


def test_the_discriminator_leaves_both_with_the_same_weights(tmp_path):
    config = tmp_path / "config.yaml"
    write_config(
        config,
        **{
            "stage1.discriminator.weight": 0.75,
            "stage1.discriminator.layers": 1,
            "stage1.discriminator.start": 2,
        },
    )
    result = launch(SCRIPT, config, tmp_path / "run", "same", "1")
    assert "equal after 12 steps of optimizers" in result.stdout
    assert Run.open(tmp_path / "run").metrics()[-2]["discriminator_gradient_norm"] > 0


def test_a_process_that_fails_ends_all(tmp_path):
    config = tmp_path / "config.yaml"
    write_config(config)
    begun = time.monotonic()
    result = launch(SCRIPT, config, tmp_path / "run", "fail", "1", check=False)
    assert result.returncode
    assert "this process fails" in result.stderr
    assert time.monotonic() - begun < 90
    assert (tmp_path / "run" / "checkpoints" / "stage1-0000002.safetensors").exists()


def test_what_all_refuse_is_said_once(tmp_path):
    config = tmp_path / "config.yaml"
    write_config(config, **{"stage1.batch_size": 6})
    rqtool = Path(sys.executable).with_name("rqtool")
    arguments = ("imagegen", "train", config, "--out", tmp_path / "run")
    result = launch("--no-python", rqtool, *arguments, check=False)
    assert result.returncode
    message = "stage1.batch_size=6 must divide by stage1.accumulate times processes; got 2 × 2"
    assert result.stderr.count(message) == 1
    assert not (tmp_path / "run").exists()
