import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("distributed_script.py")
NAMES = [
    *("per level", "shared and padded", "padded halves", "factorised", "gradient"),
    *("paper", "paper with restarts", "loaded by one", "FSDP", "FSDP, factorised"),
    *("DDP", "DDP, factorised", "DDP, gradient", "DDP, compiled", "DDP, accumulated"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for command in ([*launch, SCRIPT, "2", path], [sys.executable, SCRIPT, "1", path]):
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_on_shares_of_a_batch_equal_one_on_the_whole(folder, name):
    alone, first, second = (
        load_file(folder / f"{name}-{process}.safetensors") for process in ("1-0", "2-0", "2-1")
    )
    for key, tensor in first.items():
        assert torch.equal(second[key], tensor), key
        if name != "paper with restarts":  # which are vectors of the first process alone
            torch.testing.assert_close(tensor, alone[key], rtol=1e-4, atol=1e-5, msg=key)
    if "restarts" in alone and not name.startswith("paper"):
        assert alone["restarts"] > 3
