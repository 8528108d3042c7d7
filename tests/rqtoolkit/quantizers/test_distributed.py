import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("distributed_script.py")


@pytest.mark.slow
def test_two_processes_on_shares_of_a_batch_equal_one_on_the_whole(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for command in ([*launch, SCRIPT, "2", tmp_path], [sys.executable, SCRIPT, "1", tmp_path]):
        subprocess.run(command, check=True, capture_output=True, timeout=200)
    states = [load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1")]
    assert states[0]["state.initialized"]
    for other in states[1:]:
        for name, tensor in states[0].items():
            torch.testing.assert_close(other[name].float(), tensor.float(), rtol=1e-5, atol=1e-6)
