"""Real processes killed at moments nobody chose: what goes on equals what was never interrupted."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_training import contents, small

from imagegen.config import dump_config
from imagegen.runs import Run

pytestmark = pytest.mark.slow
RQTOOL = Path(sys.executable).with_name("rqtool")
LONGER = {
    "stage1.steps": 60,
    "stage2.steps": 60,
    "stage1.checkpoint_every": 7,  # an epoch is 180 steps: always in the middle of one
    "stage2.checkpoint_every": 7,
    "stage1.sample_every": 20,
    "stage2.sample_every": 20,
    "stage1.discriminator.weight": 0.75,
    "stage1.discriminator.layers": 1,
    "stage1.discriminator.start": 10,
    "stage1.discriminator.augment": ["translation"],
    "transformer.label_dropout": 0.1,
}


@pytest.fixture
def start(tmp_path):
    """A function that starts a training in a folder as a process of its own."""
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(small(**LONGER)))
    started = []

    def launch(folder, *options):
        command = [RQTOOL, "imagegen", "train", config, "--out", folder, *options]
        process = subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process, folder, stage, step):
    """Wait until a step has been logged."""
    deadline = time.monotonic() + 120
    wanted = f'{{"stage": {stage}, "step": {step}, '
    while time.monotonic() < deadline:
        log = folder / "metrics.jsonl"
        if log.exists() and wanted in log.read_text():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    raise TimeoutError


def finish(process):
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors


def test_a_killed_run_goes_on_to_the_bit(tmp_path, start):
    finish(start(tmp_path / "whole"))
    folder, moments = tmp_path / "run", random.Random()
    options = ()
    for stage in (1, 2):
        step = moments.randrange(8, 50)
        process = start(folder, *options)
        wait_for(process, folder, stage, step)
        time.sleep(moments.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        options = ("--resume",)
    finish(start(folder, "--resume"))
    assert contents(folder) == contents(tmp_path / "whole")
    names = load_file(folder / "checkpoints" / "stage1-0000060.safetensors").keys()
    assert any(name.startswith("optimizer.discriminator.") for name in names)


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, 130, "Stopped, and saved: go on with --resume.\nInterrupted.\n"),
        (signal.SIGTERM, 143, ""),
    ],
)
def test_a_run_that_is_told_to_stop_saves_its_step_first(tmp_path, start, number, code, says):
    folder = tmp_path / "run"
    process = start(folder, "--stage", "1")
    wait_for(process, folder, 1, 10)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors.endswith(says)) == (code, True)
    last = Run.open(folder).metrics()[-1]["step"]
    assert (folder / "checkpoints" / f"stage1-{last:07d}.safetensors").exists()
    assert last < 60
