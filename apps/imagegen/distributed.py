"""Several processes that train one model: torchrun starts them, torch's own DDP or FSDP joins them.

One process is the case of a group of one: nothing here then talks to anybody.
"""

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rqtoolkit.errors import RQToolkitError

__all__ = [
    "Ranks",
    "average_over_ranks",
    "copy_into",
    "gathered",
    "is_divided",
    "join",
    "original",
    "own_share",
    "spread",
    "synchronising",
    "trained",
]

Result = TypeVar("Result")

# Others wait this long while the first process draws pictures and writes files.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """Which process this is.

    Attributes:
        rank: Number among all processes.
        local_rank: Number among those of this machine, and of its GPU.
        size: Number of processes.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes, logs and draws."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all the others."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))

    def largest(self, number: int) -> int:
        """Return the largest of the numbers of all processes, the same in all of them."""
        if self.size == 1:
            return number
        value = torch.tensor(number)  # on the host: no GPU is waited for
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def together(self, work: Callable[[], Result]) -> Result:
        """Do work in every process, or in none: an error of one ends all, and is told once.

        Returns:
            What `work` returned in this process.

        Raises:
            RQToolkitError: If `work` did, in the first process of those where it failed.
            SystemExit: In the others, with code 2.
        """
        result, error = None, None
        try:
            result = work()
        except RQToolkitError as raised:
            error = raised
        failed = self.size - self.largest(0 if error is None else self.size - self.rank)
        if failed == self.size:
            return cast(Result, result)
        if error is not None and failed == self.rank:
            raise error
        raise SystemExit(2)


@contextlib.contextmanager
def join() -> Iterator[Ranks]:
    """Join the processes that torchrun started, until the block ends; alone, do nothing.

    Yields:
        Which process this is.

    Raises:
        RQToolkitError: If another process is gone.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        yield _present()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(backend, timeout=_PATIENCE)
    with warnings.catch_warnings():
        # Of convolutions with one channel, where the strides that differ are never used.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
        try:
            yield _present()
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise RQToolkitError(
                f"train: process {_present().rank} lost another one, whose own message says why; "
                f"got a closed connection. Mend that and go on with --resume."
            ) from error
        finally:
            dist.destroy_process_group()


def _present() -> Ranks:
    if not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), int(os.environ.get("LOCAL_RANK", "0")), dist.get_world_size())


class _Call(nn.Module):
    """Makes a method of a module its forward, which is what DDP and FSDP wrap."""

    def __init__(self, module: nn.Module, method: str, plain: nn.Module) -> None:
        super().__init__()
        self.module, self.method = module, method
        self.plain = (plain,)  # in a tuple: no part of this module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, self.method)(*args, **kwargs)


def spread(
    module: nn.Module,
    ranks: Ranks,
    *,
    mode: str,
    device: torch.device,
    method: str = "forward",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Let all processes train a module together; the optimizer takes the result's parameters.

    Calling the result calls `method` of the module on this process's share of a batch. Backward
    passes then leave gradients averaged over the processes. Under "fsdp" each process holds a share
    of every tensor in a copy of the module. The module itself, which only the first process keeps
    in memory, is what the training loop fills with the weights to draw pictures from and to save.

    Args:
        module: What to train.
        ranks: The processes.
        mode: "ddp" gives every process the whole model, "fsdp" a share of it.
        device: Where this process computes.
        method: What calls go to.
        dtype: Of parameters and activations under "fsdp", whose shares and sums stay float32.

    Returns:
        The module to call and to hand to `imagegen.training.train_loop`.

    References:
        Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB
        2020, https://arxiv.org/abs/2006.15704
        Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023,
        https://arxiv.org/abs/2304.11277
    """
    if ranks.size == 1:
        return _Call(module.to(device), method, module)
    if mode == "fsdp":
        divided = _shard(copy.deepcopy(module).to(device), device, method, dtype)
        return _Call(divided, method, module if ranks.main else module.to("meta"))
    if device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    called = _Call(module.to(device), method, module)
    with warnings.catch_warnings():
        # The successor that newer versions of torch name is not in those before.
        warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated", FutureWarning)
        return DistributedDataParallel(
            called,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # quantizers keep theirs equal; each pass would overwrite them
            gradient_as_bucket_view=True,
        )


def _shard(module: nn.Module, device: torch.device, method: str, dtype: torch.dtype) -> nn.Module:
    """Divide a module over all processes, blocks of layers one by one."""
    from torch.distributed.device_mesh import init_device_mesh  # half a second to import
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    half = dtype if dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    for block in (block for blocks in lists for block in blocks):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    if method != "forward":
        register_fsdp_forward_method(module, method)
    return module


def trained(module: nn.Module) -> nn.Module:
    """Return the module that holds the parameters of what `spread` gave, or the module itself."""
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    return inner.module if isinstance(inner, _Call) else inner


def original(module: nn.Module) -> nn.Module:
    """Return the module that `spread` was given; under "fsdp" it keeps the weights of the start."""
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    return inner.plain[0] if isinstance(inner, _Call) else inner


@contextlib.contextmanager
def synchronising(modules: Iterable[nn.Module], wanted: bool) -> Iterator[None]:
    """Say whether backward passes in the block average gradients: the last of a step's suffices."""
    with contextlib.ExitStack() as stack:
        for module in modules:
            if isinstance(module, DistributedDataParallel) and not wanted:
                stack.enter_context(module.no_sync())
            inner = trained(module)
            if hasattr(inner, "set_requires_gradient_sync"):  # divided by FSDP
                cast(Any, inner).set_requires_gradient_sync(wanted)
        yield


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes; alone, the tensor itself."""
    if not dist.is_initialized():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor whole: for a divided one, all processes must ask at once."""
    return cast(Any, tensor).full_tensor() if is_divided(tensor) else tensor


def own_share(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, sharing its memory."""
    return cast(Any, tensor).to_local() if is_divided(tensor) else tensor


def is_divided(tensor: Tensor) -> bool:
    """Return whether each process holds but a share of a tensor, a DTensor of FSDP."""
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def copy_into(target: Tensor, whole: Tensor) -> None:
    """Write a whole tensor into one that may be divided: each process takes its share."""
    if is_divided(target):
        from torch.distributed.tensor import distribute_tensor

        whole = whole.to(target.device, target.dtype)
        mesh, placements = cast(Any, target).device_mesh, cast(Any, target).placements
        whole = own_share(distribute_tensor(whole, mesh, placements, src_data_rank=None))
    own_share(target).copy_(whole)
