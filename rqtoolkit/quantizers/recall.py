"""Recall of nearest-neighbour search in what a quantizer makes of vectors."""

from collections.abc import Iterable, Sequence

import torch
from numpy.typing import NDArray

from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES
from rqtoolkit.functional.recall import Recall, RecallMeter
from rqtoolkit.quantizers.base import Quantizer

__all__ = ["evaluate_recall"]


@torch.no_grad()
def evaluate_recall(
    quantizer: Quantizer,
    chunks: Iterable[NDArray],
    queries: NDArray,
    *,
    ks: Sequence[int] = (1, 10, 100),
    metrics: Sequence[str] = ("l2", "ip"),
    beam: int | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> dict[str, Recall]:
    """Encode a base and measure how many true neighbours a search of its codes finds.

    The search is that of an exhaustive index of `to_faiss`, whatever the codebook sizes.

    Args:
        quantizer: The quantizer.
        chunks: The base, arrays (n, dim) of float32.
        queries: Shape (Q, dim), not quantized.
        ks: Numbers of first results to look at.
        metrics: "l2", "ip", or both.
        beam: Prefixes kept in encoding; the quantizer's own number when None.
        max_bytes: Bound on the memory of the search at work.
        threads: Threads of the search; as many as torch uses when None.

    Returns:
        For each metric 1-recall@k and k-recall@k; see `rqtoolkit.functional.recall.Recall`.

    Raises:
        ShapeError: If base or queries do not have the quantizer's dim.
        DataError: If values are not finite, or the base has fewer rows than the largest k.
        ConfigError: If a k or a metric is not known.
    """
    meter = RecallMeter(queries, ks=ks, metrics=metrics, max_bytes=max_bytes, threads=threads)
    for chunk in chunks:
        codes = quantizer.encode(torch.from_numpy(chunk), beam=beam)
        meter.add(chunk, quantizer.decode(codes).cpu().numpy())
    return meter.result()
