"""Run by test_distributed.py in every process: train on a share of each batch, save the state."""

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from rqtoolkit import ResidualQuantizer

torch.set_num_threads(1)
world_size, path = int(sys.argv[1]), sys.argv[2]
if world_size > 1:
    dist.init_process_group("gloo")
    assert dist.get_world_size() == world_size
rank = dist.get_rank() if world_size > 1 else 0
torch.manual_seed(0)
quantizer = ResidualQuantizer(4, 2, 16, restart_threshold=0)
for step in range(20):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(20, 4, generator=generator)
    # Uneven shares: two thirds of the vectors belong to the first process
    own = x if world_size == 1 else (x[:13], x[13:])[rank]
    quantizer(own, generator=generator)
save_file(quantizer.state_dict(), f"{path}/{world_size}-{rank}.safetensors")
if world_size > 1:
    dist.destroy_process_group()
