"""Error, recall and speed of fitted quantizers."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quantize.models import Codec
from benchmarks.quantize.plan import Code
from benchmarks.quantize.vectors import Vectors
from rqtoolkit.functional.rate_distortion import relative_error
from rqtoolkit.functional.recall import RecallMeter

__all__ = ["measure_quality", "measure_speeds"]

BASE_ROWS, QUERIES = 20_000, 1_000
SPEED_ROWS, LEAST_ROWS = 20_000, 1_000
SHORTEST, LONGEST = 0.05, 3.0  # seconds that one timing is to take
GEMM_ROWS = 2048


def measure_quality(codec: Codec, vectors: Vectors) -> dict[str, float]:
    """Return the held-out relative error, and 1-recall@1 and @10 of searching decoded vectors.

    The base are rows of the training part, the queries held-out ones, which are not quantized.
    """
    held_out = vectors.held_out
    meter = RecallMeter(held_out[:QUERIES], ks=(1, 10), metrics=("l2",))
    base = vectors.train[:BASE_ROWS]
    meter.add(base, codec.decode(codec.encode(base)))
    recall = meter.result()["l2"].one_recall_at
    return {
        "relative_error": relative_error(held_out, codec.decode(codec.encode(held_out))),
        "one_recall_at_1": recall[1],
        "one_recall_at_10": recall[10],
    }


@dataclass
class Timed:
    """A call that is timed again and again, and what it took.

    Attributes:
        call: What is timed.
        rows: Vectors that a call works on.
        calls: In each timing, so that the clock can tell.
    """

    call: Callable[[], object]
    rows: int

    def __post_init__(self) -> None:
        self.call()  # warms up: compiles, fills caches
        self.calls = math.ceil(SHORTEST / _seconds(self.call))
        self.clock: list[float] = []
        self.processor: list[float] = []

    def time(self) -> None:
        """Time it once more."""
        clock, processor = perf_counter(), process_time()
        for _ in range(self.calls):
            self.call()
        self.clock.append((perf_counter() - clock) / self.calls)
        self.processor.append((process_time() - processor) / self.calls)

    def rates(self) -> dict[str, float]:
        """Return vectors a second by the clock, and a second of the processor; medians."""
        return {
            "per_second": self.rows / median(self.clock),
            "per_cpu_second": self.rows / median(self.processor),
        }


def measure_speeds(
    codecs: Mapping[str, Codec], x: NDArray, code: Code, *, repeats: int
) -> dict[str, Any]:
    """Time encoding and decoding of all codecs in turns, and the bare matrix product among them.

    Args:
        codecs: By name of method.
        x: Vectors, repeated to `SPEED_ROWS`; slow methods get fewer of them.
        code: Shape of the codes.
        repeats: Turns.

    Returns:
        For each method rates of "encode" and "decode", and those of "gemm" beside them.
    """
    x = np.resize(x, (SPEED_ROWS, x.shape[1]))
    jobs: dict[tuple[str, str], Timed] = {}
    for name, codec in codecs.items():
        rows = x[: _affordable_rows(codec, x)]
        codes = codec.encode(rows)
        codes = np.resize(codes, (SPEED_ROWS, codes.shape[1]))
        jobs[name, "encode"] = Timed(lambda codec=codec, rows=rows: codec.encode(rows), len(rows))
        jobs[name, "decode"] = Timed(
            lambda codec=codec, codes=codes: codec.decode(codes), SPEED_ROWS
        )
    for name, product in _products(x, code.depth * code.size).items():
        jobs["gemm", name] = Timed(product, SPEED_ROWS)
    for _ in range(repeats):
        for job in jobs.values():
            job.time()
    rates = {key: job.rates() for key, job in jobs.items()}
    products = [rate for (name, _), rate in rates.items() if name == "gemm"]
    return {
        "gemm": max(products, key=lambda rate: rate["per_second"]),
        "methods": {
            name: {way: rates[name, way] for way in ("encode", "decode")} for name in codecs
        },
    }


def _affordable_rows(codec: Codec, x: NDArray) -> int:
    """Return how many rows encode in `LONGEST` seconds, within `LEAST_ROWS` and all."""
    codec.encode(x[: 2 * LEAST_ROWS])  # enough for what is compiled to be compiled
    seconds = _seconds(lambda: codec.encode(x[:LEAST_ROWS]))
    return int(np.clip(LONGEST / seconds * LEAST_ROWS, LEAST_ROWS, len(x)))


def _seconds(call: Callable[[], object]) -> float:
    begun = perf_counter()
    call()
    return perf_counter() - begun


def _products(x: NDArray, codewords: int) -> dict[str, Callable[[], object]]:
    """Return ways to multiply all vectors with all codewords, chunk by chunk: BLAS and oneDNN."""
    chunks = torch.from_numpy(x).split(GEMM_ROWS)
    table = torch.from_numpy(np.resize(x, (codewords, x.shape[1])))
    out = torch.empty(GEMM_ROWS, codewords)

    def blas() -> None:
        for chunk in chunks:
            torch.mm(chunk, table.T, out=out[: len(chunk)])

    def onednn() -> None:
        for chunk in chunks:
            torch.ops.mkldnn._linear_pointwise(chunk, table, None, "none", [], "")

    ways: dict[str, Callable[[], object]] = {"blas": blas}
    return ways | ({"onednn": onednn} if torch.backends.mkldnn.is_available() else {})
