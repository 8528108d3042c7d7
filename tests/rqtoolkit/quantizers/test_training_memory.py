"""What a training step takes beyond its inputs, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROWS = SIZE = 2**14
ONE_MATRIX = 4 * ROWS * SIZE  # bytes of all distances, 1 GiB

PEAK = """
import sys
from pathlib import Path

import torch

from rqtoolkit import ResidualQuantizer

rows, size = map(int, sys.argv[1:])
torch.set_num_threads(1)


def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def step(rows, size):
    quantizer = ResidualQuantizer(16, 1, size, kmeans_init=False)
    x = torch.randn(rows, 16, requires_grad=True)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    out = quantizer(x)
    (out.quantized.square().mean() + out.commitment_loss).backward()
    return memory("VmHWM") - before


step(64, 64)
print(step(rows, size))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")
def test_a_step_takes_a_small_part_of_the_matrix_of_all_distances():
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(ROWS), str(SIZE)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert int(done.stdout) < ONE_MATRIX / 16
