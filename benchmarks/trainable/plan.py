"""What is measured: two quantizers in their settings, and the sizes they are measured at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ

from rqtoolkit import ResidualQuantizer

__all__ = ["OWN", "PARTS", "QUANTIZERS", "SHAPES", "Layer", "Shape", "build"]

PARTS = ("speed", "memory", "error", "batches")
COMMITMENT = 0.25
"""Weight of our commitment loss; the peer weights its own."""

OWN = "rqtoolkit"


@dataclass(frozen=True)
class Shape:
    """Sizes of a step: `depth` levels of `size` codewords, on `rows` vectors."""

    dim: int
    depth: int
    size: int
    rows: int

    @property
    def name(self) -> str:
        """What its records are called."""
        return f"{self.dim}-{self.depth}x{self.size}-{self.rows}"

    @property
    def work(self) -> int:
        """Multiplications of the search."""
        return self.dim * self.depth * self.size * self.rows


_ALL_SHAPES = (
    Shape(dim, depth, size, rows)
    for size in (1024, 8192)
    for dim in (64, 256)
    for depth in (4, 8)
    for rows in (2048, 8192, 32768)
)
SHAPES = {shape.name: shape for shape in sorted(_ALL_SHAPES, key=lambda shape: shape.work)}


class Layer(nn.Module):
    """A quantizer as a layer: called with vectors (..., dim), it gives what a step needs.

    Args:
        quantizer: Either library's.
        read: Takes its output to vectors (..., dim), codes (..., depth) and the loss to add.
    """

    def __init__(
        self, quantizer: nn.Module, read: Callable[[Any], tuple[Tensor, Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.quantizer, self.read = quantizer, read

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the quantized vectors, their codes and the weighted commitment loss."""
        return self.read(self.quantizer(x))


def _own(dim: int, depth: int, size: int, **settings: Any) -> Layer:
    quantizer = ResidualQuantizer(dim, depth, size, **settings)
    return Layer(
        quantizer, lambda out: (out.quantized, out.codes, COMMITMENT * out.commitment_loss)
    )


def _peer(dim: int, depth: int, size: int, **settings: Any) -> Layer:
    defaults = {"kmeans_init": True, "threshold_ema_dead_code": 2}
    quantizer = ResidualVQ(
        dim=dim, num_quantizers=depth, codebook_size=size, **{**defaults, **settings}
    )
    return Layer(quantizer, lambda out: (out[0], out[1], out[2].sum()))


Build = Callable[..., Layer]

QUANTIZERS: Mapping[str, tuple[str, Build, Mapping[str, Any]]] = {
    OWN: ("rqtoolkit", _own, {}),
    "vqp": ("vector-quantize-pytorch", _peer, {}),
    "vqp-quarter": ("vector-quantize-pytorch, commitment 0.25", _peer, {"commitment_weight": 0.25}),
}
"""Title, builder and settings of each."""


def build(name: str, dim: int, depth: int, size: int, **settings: Any) -> Layer:
    """Return a quantizer of `QUANTIZERS`, with further settings of its library."""
    _, builder, own = QUANTIZERS[name]
    return builder(dim, depth, size, **{**own, **settings})
