"""Run by test_two_processes.py in every process: train, with an accident if one is asked for."""

import sys

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook

from imagegen.config import load_config
from imagegen.jobs import train_run

torch.set_num_threads(1)
config, folder, what, *rest = sys.argv[1:]
settings = load_config(config)
steps = 0


def same_everywhere(optimizer, _args, _kwargs):
    """After every step of every optimizer the weights are equal in all processes, to the bit."""
    global steps
    steps += 1
    parameters = [p.detach().flatten() for group in optimizer.param_groups for p in group["params"]]
    own = torch.cat(parameters).view(torch.int32)
    low, high = own.clone(), own.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    assert torch.equal(low, high)


def fail_at_step_3(_optimizer, _args, _kwargs):
    """Stop one process, and leave the others to wait for it."""
    global steps
    steps += 1
    if steps == 3 and dist.get_rank() == 1:
        raise RuntimeError("this process fails")


def stop_after_step_4(description, done, _total):
    """End at a checkpoint, as a machine does that is switched off."""
    if description.startswith("Stage 2") and done == 5:
        raise RuntimeError("switched off")


hooks = {"same": same_everywhere, "fail": fail_at_step_3}
if what in hooks:
    register_optimizer_step_post_hook(hooks[what])
run = train_run(
    settings,
    folder,
    stages=tuple(map(int, rest[0])),
    resume=True,
    progress=stop_after_step_4 if what == "stop" else None,
)
assert run.ranks.size == 2
if what == "same" and run.ranks.main:
    print(f"equal after {steps} steps of optimizers")
