"""Gradients of one step of stage 1 on this process's half of a batch; torchrun starts it twice."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_stage1_step import BATCH, build, parts_of

from imagegen.distributed import average_over_ranks, join, spread, synchronising
from imagegen.stage1_step import Adversary


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with join() as ranks:
        assert ranks.size == 2
        step, autoencoder, discriminator, _ = build()
        autoencoder.quantizer.freeze()
        cpu = torch.device("cpu")
        step.autoencoder = spread(autoencoder, ranks, mode="ddp", device=cpu)
        adversary = step.adversary
        assert isinstance(adversary, Adversary)
        adversary.discriminator = spread(discriminator, ranks, mode="ddp", device=cpu)
        adversary.average = adversary.adaptive_weight.average = average_over_ranks
        networks = (step.autoencoder, adversary.discriminator)
        for number, half in enumerate(parts_of(BATCH)[ranks.rank]):  # a step in two parts
            with synchronising(networks, number == 1):
                _, figures = step(half, 0, share=0.5)
        grads = {
            f"{name}.{key}": p.grad
            for name, model in (("autoencoder", autoencoder), ("discriminator", discriminator))
            for key, p in model.named_parameters()
            if p.grad is not None
        }
        weight = torch.tensor(figures()["adaptive_weight"])
        save_file({**grads, "weight": weight}, folder / f"{ranks.rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
