"""Run by test_distributed.py in every process: train on shares of batches, save what became."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from rqtoolkit import ResidualQuantizer
from rqtoolkit.errors import ConfigError

torch.set_num_threads(1)
WORLD_SIZE, PATH = int(sys.argv[1]), sys.argv[2]
DIM, ROWS, STEPS = 4, 12, 10
HALVES = [6] * STEPS
UNEVEN = [12, 5, 0, 8, 12, 7, 11, 0, 1, 9]  # rows of a batch that the first process takes

# Name: shares of the first process, whether there is padding, arguments
CASES = {
    "per level": (UNEVEN, False, {"codebook_size": [40, 16]}),
    "shared and padded": (UNEVEN, True, {"shared_codebook": True}),
    "padded halves": (HALVES, True, {"similarity": "cosine"}),
    "factorised": (UNEVEN, True, {"codebook_dim": 2}),
    "gradient": (UNEVEN, True, {"update": "gradient"}),
    "paper": (UNEVEN, True, {"update": "paper", "restart_threshold": 0}),
    "paper with restarts": (UNEVEN, True, {"update": "paper"}),  # of the first process's vectors
}
EXCHANGES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "barrier")


def make(**options: object) -> ResidualQuantizer:
    torch.manual_seed(0)
    defaults = {"depth": 2, "codebook_size": 16, "decay": 0.6, "restart_threshold": 0.8}
    return ResidualQuantizer(dim=DIM, **defaults | options)


def own(x: Tensor, first: int) -> Tensor:
    """Return this process's share of a batch whose first rows are the first process's."""
    return x if WORLD_SIZE == 1 else (x[:first], x[first:])[RANK]


def train_alone(quantizer: ResidualQuantizer, shares: list[int], padded: bool) -> dict[str, Tensor]:
    """Let a quantizer learn from sequences; return its state and how many entries restarted."""
    restarts = torch.tensor(0)
    for step, first in enumerate(shares):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(ROWS, 3, DIM, generator=generator)
        mask = torch.rand(ROWS, 3, generator=generator) < 0.7 if padded else None
        mask = None if mask is None else own(mask, first)
        restarts += sum(quantizer(own(x, first), mask, generator=generator).stats.dead)
    return quantizer.state_dict() | {"restarts": restarts}


class Autoencoder(nn.Module):
    """An encoder, a quantizer and a decoder; called, it returns the loss."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(6, DIM), nn.Linear(DIM, 6)
        self.quantizer = make(**options)

    def forward(self, x: Tensor) -> Tensor:
        out = self.quantizer(self.encoder(x))
        error = (self.decoder(out.quantized) - x).square().mean()
        return error + 0.25 * out.commitment_loss + out.codebook_loss


def train_inside(model: nn.Module, micro_batches: int = 1) -> dict[str, Tensor]:
    """Train a network on halves of batches; return its state, whole on every process."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        *others, last = torch.randn(micro_batches, 32, 6, generator=generator)
        torch.manual_seed(step)
        for x in others:
            with model.no_sync() if SEVERAL else nullcontext():
                model(own(x, 16)).backward()
        model(own(last, 16)).backward()
        optimizer.step()
        optimizer.zero_grad()
    state = {
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor
        for name, tensor in model.state_dict().items()
    }
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in state.items()}


def exchanges_of_a_step(depth: int) -> Counter[str]:
    quantizer = make(depth=depth)
    quantizer(torch.randn(40, DIM))
    seen: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., object]:
        original = getattr(dist, name)
        return lambda *args, **kwargs: seen.update([name]) or original(*args, **kwargs)

    with mock.patch.multiple(dist, **{name: counted(name) for name in EXCHANGES}):
        quantizer(torch.randn(40, DIM))
    return seen


def save(name: str, state: dict[str, Tensor]) -> None:
    save_file(state, f"{PATH}/{name}-{WORLD_SIZE}-{RANK}.safetensors")


# Made before there is a process group
quantizers = {name: make(**options) for name, (_, _, options) in CASES.items()}
started = make()
started(torch.randn(40, DIM))
SEVERAL = WORLD_SIZE > 1
if SEVERAL:
    dist.init_process_group("gloo")
    assert dist.get_world_size() == WORLD_SIZE
RANK = dist.get_rank() if SEVERAL else 0

for name, (shares, padded, _) in CASES.items():
    save(name, train_alone(quantizers[name], shares, padded))
for name, options in {
    "DDP": {},
    "DDP, factorised": {"codebook_dim": 2, "estimator": "rotation"},
    "DDP, gradient": {"update": "gradient"},
}.items():
    network = Autoencoder(**options)
    save(name, train_inside(DistributedDataParallel(network) if SEVERAL else network))
for name, options in {"FSDP": {}, "FSDP, factorised": {"codebook_dim": 2}}.items():
    network = Autoencoder(**options)
    save(name, train_inside(fully_shard(network) if SEVERAL else network))

# The exchanges are part of the graph
network = Autoencoder(kmeans_init=False)
graph = torch.compile(network, fullgraph=True, backend="aot_eager")
save("DDP, compiled", train_inside(DistributedDataParallel(graph) if SEVERAL else network))
network = Autoencoder()
wrapped = DistributedDataParallel(network) if SEVERAL else network
save("DDP, accumulated", train_inside(wrapped, micro_batches=2))

# What one process loads, DDP gives to all
network = Autoencoder()
if RANK == 0:
    network.quantizer.load_state_dict(started.state_dict())
save("loaded by one", train_inside(DistributedDataParallel(network) if SEVERAL else network))

if SEVERAL:
    # Restarts would be lost with the tables that a step gathers
    network = fully_shard(Autoencoder(update="gradient"))
    with pytest.raises(ConfigError, match="fully_shard"):
        train_inside(network)
    network = Autoencoder(update="gradient", restart_threshold=0, kmeans_init=False)
    train_inside(fully_shard(network, mp_policy=MixedPrecisionPolicy(torch.bfloat16)))

    assert exchanges_of_a_step(depth=2) == exchanges_of_a_step(depth=8) == {"all_reduce": 2}
    dist.destroy_process_group()

# All is saved; threads of gloo now and then abort an interpreter that takes its time to end.
os._exit(0)
