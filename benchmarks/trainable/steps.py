"""Time and peak memory of one training step: forward, backward, update of the codebooks."""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch

from benchmarks.records import ROOT
from benchmarks.trainable.plan import OWN, SHAPES, Shape, build

__all__ = ["PEER", "measure_memory", "measure_times"]

PEER = "vqp"
SETTINGS = {OWN: {}, PEER: {"rotation_trick": False}}  # both straight through
LONGEST = 60.0
WARM_UP = 512  # vectors, enough for what is loaded on first use


def training_step(name: str, shape: Shape) -> Callable[[], None]:
    """Return a step on normal vectors.

    k-means is left out, which comes once in a training; both libraries restart dead entries.
    """
    torch.manual_seed(0)
    layer = build(name, shape.dim, shape.depth, shape.size, kmeans_init=False, **SETTINGS[name])
    x = torch.randn(1, shape.rows, shape.dim, requires_grad=True)

    def step() -> None:
        x.grad = None
        quantized, _, loss = layer(x)
        (quantized.square().mean() + loss).backward()

    return step


def measure_times(shape: Shape, *, repeats: int) -> dict[str, dict[str, float]]:
    """Time both libraries in turn, in one process.

    Args:
        shape: Sizes of the step.
        repeats: Turns, after one that warms up; fewer where they take over `LONGEST` seconds.

    Returns:
        For each library the median `seconds` and `cpu_seconds` of a step, and as "ratio" the
        medians of ours over theirs of the same turn.
    """
    steps = {name: training_step(name, shape) for name in (OWN, PEER)}
    clocks = {"seconds": perf_counter, "cpu_seconds": process_time}
    times: dict[str, dict[str, list[float]]] = {name: {c: [] for c in clocks} for name in steps}
    start = perf_counter()
    for turn in range(repeats + 1):
        if turn > 1 and perf_counter() - start > LONGEST:
            break
        for name, step in steps.items():
            begun = {clock: read() for clock, read in clocks.items()}
            step()
            if turn:
                for clock, read in clocks.items():
                    times[name][clock].append(read() - begun[clock])
    ratios = {
        clock: median(a / b for a, b in zip(times[OWN][clock], times[PEER][clock], strict=True))
        for clock in clocks
    }
    medians = {n: {clock: median(values) for clock, values in t.items()} for n, t in times.items()}
    return medians | {"ratio": ratios}


def measure_memory(name: str, shape: Shape, *, threads: int) -> dict[str, int]:
    """Return what a step takes at its peak, in a process of its own, as one keeps what it frees.

    Args:
        name: A key of `QUANTIZERS`.
        shape: Sizes of the step.
        threads: Of torch.

    Returns:
        `extra_bytes` beyond libraries, codebooks with their state, and input.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainable.steps", name, shape.name, str(threads)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _peak_of(name: str, shape: Shape) -> int:
    training_step(name, Shape(shape.dim, 1, 64, WARM_UP))()
    step = training_step(name, shape)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = _kilobytes("VmRSS")
    step()
    return max(0, 1024 * (_kilobytes("VmHWM") - before))


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    name, shape, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps({"extra_bytes": _peak_of(name, SHAPES[shape])}))
