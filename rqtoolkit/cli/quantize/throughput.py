"""How fast encoding was, beside the matrix product that it cannot do without."""

import time
from collections.abc import Callable, Sequence

import torch

__all__ = ["gemm_rate"]

_SECONDS = 0.2
_PRODUCT_ELEMENTS = 2**22  # 16 MiB of float32
_LEAST_ROWS = 256


def gemm_rate(dim: int, codewords: int, *, device: str = "cpu") -> float:
    """Measure how many vectors a second meet all codewords in a bare float32 matrix product.

    Takes a fifth of a second, with the threads that torch has at the moment. Of the libraries that
    torch multiplies with, the fastest counts.

    Args:
        dim: Vector size.
        codewords: Number of codewords of that size.
        device: Where.
    """
    rows = max(_LEAST_ROWS, _PRODUCT_ELEMENTS // codewords)
    x, table = torch.ones(rows, dim, device=device), torch.ones(codewords, dim, device=device)
    out = torch.empty(rows, codewords, device=device)

    def product() -> None:
        torch.mm(x, table.T, out=out)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    ways: list[Callable[[], object]] = [product]
    # oneDNN, which BLAS libraries may be slower than
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, table, None, "none", [], ""))
    return rows / min(_fastest(ways))


def _fastest(ways: Sequence[Callable[[], object]]) -> list[float]:
    """Return the least seconds of each way, called in turns until the time is up."""
    least = [float("inf")] * len(ways)
    for way in ways:
        way()
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        for position, way in enumerate(ways):
            start = time.perf_counter()
            way()
            least[position] = min(least[position], time.perf_counter() - start)
    return least
