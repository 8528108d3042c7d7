"""What is fitted, and in which ways each fitted quantizer encodes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CODES", "METHODS", "MODELS", "PARTS", "Code", "Method", "methods_of"]

PARTS = ("fit", "quality", "speed", "memory")


@dataclass(frozen=True)
class Code:
    """The shape of a code: `depth` numbers below `size`, a power of two."""

    depth: int
    size: int

    @property
    def bits(self) -> int:
        """Bits of each number."""
        return self.size.bit_length() - 1

    @property
    def bytes(self) -> int:
        """Bytes of all of them, packed."""
        return -(-self.depth * self.bits // 8)


CODES = {
    "4x256": Code(4, 256),
    "8x256": Code(8, 256),
    "16x256": Code(16, 256),
    "4x1024": Code(4, 1024),
}

MODELS = {
    "faiss-rq": "faiss `ResidualQuantizer`",
    "faiss-lsq": "faiss `LocalSearchQuantizer`",
    "faiss-prq": "faiss `ProductResidualQuantizer`, 2 parts",
    "faiss-pq": "faiss PQ",
    "faiss-opq": "faiss OPQ + PQ",
    "vqp": "vector-quantize-pytorch `ResidualVQ`",
    "residual": "rqtoolkit",
    "grouped": "rqtoolkit, 2 groups, rotated",
    "neural": "rqtoolkit, neural",
}
"""What is fitted, once for all its methods: name and title."""

NEURAL_CODES = ("8x256",)  # the longest training by far


@dataclass(frozen=True)
class Method:
    """One way of encoding with a fitted quantizer.

    Attributes:
        name: What its records are called.
        model: A key of `MODELS`.
        label: What sets it apart from the model's other methods; may be empty.
        settings: Of `encode`.
    """

    name: str
    model: str
    label: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name of the method in tables."""
        return ", ".join(filter(None, (MODELS[self.model], self.label)))


BEAMS = (1, 5, 16, 32)
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(
            Method(f"faiss-rq-{b}", "faiss-rq", f"beam {b}", {"beam": b, "tables": False})
            for b in BEAMS
        ),
        *(
            Method(f"faiss-rq-{b}-tables", "faiss-rq", f"beam {b}, tables", {"beam": b})
            for b in BEAMS
        ),
        Method("faiss-lsq", "faiss-lsq"),
        Method("faiss-prq", "faiss-prq"),
        Method("faiss-pq", "faiss-pq"),
        Method("faiss-opq", "faiss-opq"),
        Method("vqp", "vqp"),
        *(Method(f"residual-{b}", "residual", f"beam {b}", {"beam": b}) for b in BEAMS),
        Method("residual-5-icm", "residual", "beam 5, ICM", {"beam": 5, "icm_rounds": 3}),
        Method("residual-16-icm", "residual", "beam 16, ICM", {"beam": 16, "icm_rounds": 3}),
        Method(
            "residual-16-perturbed",
            "residual",
            "beam 16, ICM, 16 perturbations",
            {"beam": 16, "icm_rounds": 3, "perturbations": 16},
        ),
        Method("grouped", "grouped"),
        Method("neural", "neural"),
    )
}


def methods_of(names: Iterable[str], code: str) -> list[Method]:
    """Return the methods that names of methods or of models stand for, in the plan's order.

    Args:
        names: Keys of `METHODS` or `MODELS`.
        code: A key of `CODES`; the neural quantizer is for 8 bytes alone.
    """
    names = set(names)
    chosen = [m for m in METHODS.values() if {m.name, m.model} & names]
    return [m for m in chosen if m.model != "neural" or code in NEURAL_CODES]
