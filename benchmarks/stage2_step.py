"""What do soft targets cost in a training step of stage 2, computed in chunks and all at once?

    python -m benchmarks.stage2_step                      a CPU, three codebook sizes
    python -m benchmarks.stage2_step --device cuda --batch-size 64 --dim 1536

"chunked" is what `imagegen.stage2` does: targets kept as residuals, logits and targets computed a
chunk at a time. "dense" is the plain way: probabilities and logits of all codes of the batch, then
`torch.nn.functional.cross_entropy`. Both train the same model on the same latents, in processes of
their own that take turns. Peak memory is what the steps add to what the process held before them:
resident memory on a CPU, allocated memory on a GPU. Times on a CPU are CPU seconds.
"""

import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from rqtoolkit import ResidualQuantizer, RQTransformer

Loss = Callable[[RQTransformer, ResidualQuantizer, Tensor, float], Tensor]


def chunked(
    model: RQTransformer, quantizer: ResidualQuantizer, latents: Tensor, tau: float
) -> Tensor:
    codes, targets = quantizer.soft_targets(latents, tau, stochastic=True)
    return model.loss(codes, targets=targets)


def dense(
    model: RQTransformer, quantizer: ResidualQuantizer, latents: Tensor, tau: float
) -> Tensor:
    soft = quantizer.soft_codes(latents, tau, stochastic=True)
    logits = model(soft.codes)
    return F.cross_entropy(logits.flatten(0, -2).float(), soft.probabilities.flatten(0, -2))


WAYS: dict[str, Loss] = {"chunked": chunked, "dense": dense}


def peak(device: torch.device) -> int:
    """Bytes held at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(
    way: str, *, codebook_size: int, depth: int, dim: int, batch_size: int, steps: int, device: str
) -> dict[str, float]:
    """Time the steps of one way, the first left out, and its peak memory."""
    torch.manual_seed(0)
    place = torch.device(device)
    quantizer = ResidualQuantizer(256, depth, codebook_size, shared_codebook=True).to(place).eval()
    model = RQTransformer(
        (8, 8),
        depth,
        codebook_size,
        codebooks=quantizer.codebooks,
        dim=dim,
        body_layers=2,
        depth_layers=1,
        num_heads=max(1, dim // 64),
    ).to(place)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    latents = torch.randn(batch_size, 8, 8, 256, device=place)
    clock = perf_counter if place.type == "cuda" else process_time  # others may share the cores
    before, times, losses = peak(place), [], []
    for _ in range(steps + 1):
        begun = clock()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            loss = WAYS[way](model, quantizer, latents, 0.5)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())  # waits for the device
        times.append(clock() - begun)
    return {"seconds": median(times[1:]), "bytes": peak(place) - before, "loss": losses[-1]}


def main(
    codebook_size: Annotated[list[int], typer.Option(help="Several are measured in turn.")] = [  # noqa: B006
        4096,
        8192,
        16384,
    ],
    depth: int = 4,
    dim: int = 64,
    batch_size: int = 8,
    steps: int = 2,
    rounds: int = 3,
    device: str = "cpu",
    out: Path = Path("stage2_step.json"),
    one: Annotated[str, typer.Option(help="Measure this way here and print JSON.")] = "",
) -> None:
    """Measure both ways at every codebook size, in turns."""
    sizes = {"depth": depth, "dim": dim, "batch_size": batch_size, "steps": steps, "device": device}
    if one:
        print(json.dumps(measure(one, codebook_size=codebook_size[0], **sizes)))
        return
    given = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    rows = []
    for size in codebook_size:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.stage2_step", f"--one={way}"]
                command += [f"--codebook-size={size}", *given]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[way].append(json.loads(output))
        row = {"codebook_size": size, "dense_tensor_bytes": batch_size * 64 * depth * size * 4}
        for way, results in found.items():
            row |= {f"{way}_{key}": median(r[key] for r in results) for key in results[0]}
        row["time_ratio"] = row["chunked_seconds"] / row["dense_seconds"]
        row["memory_ratio"] = row["chunked_bytes"] / row["dense_bytes"]
        rows.append(row)
    table = Table(title=f"Stage-2 step, {batch_size} × 64 positions × {depth}, dim {dim}, {device}")
    for column in (
        "K",
        "time, chunked / dense",
        "peak, chunked",
        "peak, dense",
        "(B,T,D,K) float32",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        megabytes = [
            f"{row[name] / 1e6:,.0f} MB"
            for name in ("chunked_bytes", "dense_bytes", "dense_tensor_bytes")
        ]
        table.add_row(str(row["codebook_size"]), f"{row['time_ratio']:.2f}", *megabytes)
    Console(width=120).print(table)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device_name": name}
    about |= {**sizes, "rounds": rounds}
    out.write_text(json.dumps({"about": about, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
