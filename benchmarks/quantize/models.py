"""The quantizers behind one face: fitted, kept in a file, and a pair of functions to encode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from vector_quantize_pytorch import ResidualVQ

from benchmarks.quantize.plan import Code
from rqtoolkit import GroupedResidualQuantizer, NeuralResidualQuantizer, ResidualQuantizer
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.loading import load_quantizer

__all__ = ["Codec", "Model", "fit_model", "load_model", "model_suffix"]

EPOCHS = 10


class Codec(NamedTuple):
    """Vectors (N, dim), float32, to codes of one row a vector, and back."""

    encode: Callable[[NDArray], NDArray]
    decode: Callable[[NDArray], NDArray]


class FaissModel:
    """An index of faiss, for its codec."""

    suffix = ".faiss"

    def __init__(self, index: faiss.Index) -> None:
        self.index = index

    def save(self, path: Path) -> None:
        faiss.write_index(self.index, str(path))

    @classmethod
    def load(cls, path: Path) -> "FaissModel":
        return cls(faiss.read_index(str(path)))

    def codec(self, *, beam: int | None = None, tables: bool = True) -> Codec:
        def encode(x: NDArray) -> NDArray:
            if beam is not None:
                self.index.rq.max_beam_size = beam
                self.index.rq.use_beam_LUT = int(tables)
            return self.index.sa_encode(x)

        return Codec(encode, self.index.sa_decode)


class MovingAverageModel:
    """The residual quantizer of vector-quantize-pytorch, trained by moving averages."""

    suffix = ".vqp"

    def __init__(self, dim: int, depth: int, size: int) -> None:
        self.batch = 4 * size  # the first is all that k-means sees
        self.module = ResidualVQ(
            dim=dim,
            num_quantizers=depth,
            codebook_size=size,
            decay=0.8,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=2,
        )

    @torch.no_grad()
    def fit(self, x: NDArray) -> "MovingAverageModel":
        vectors = torch.from_numpy(x)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(vectors)).split(self.batch):
                self.module(vectors[rows][None])
        return self

    def save(self, path: Path) -> None:
        save_file({n: tensor.contiguous() for n, tensor in self.module.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> "MovingAverageModel":
        tensors = load_file(path)
        depth = sum(name.endswith("_codebook.embed") for name in tensors)
        _, size, dim = tensors["layers.0._codebook.embed"].shape
        model = cls(dim, depth, size)
        model.module.load_state_dict(tensors)
        return model

    def codec(self) -> Codec:
        self.module.eval()

        @torch.no_grad()
        def encode(x: NDArray) -> NDArray:
            return self.module(torch.from_numpy(x)[None])[1][0].numpy()

        @torch.no_grad()
        def decode(codes: NDArray) -> NDArray:
            return self.module.get_output_from_indices(torch.from_numpy(codes)[None])[0].numpy()

        return Codec(encode, decode)


class OwnModel:
    """A quantizer of rqtoolkit."""

    suffix = ".safetensors"

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer.eval()

    def save(self, path: Path) -> None:
        self.quantizer.save(path)

    @classmethod
    def load(cls, path: Path) -> "OwnModel":
        return cls(load_quantizer(path))

    def codec(self, **settings: Any) -> Codec:
        return Codec(
            lambda x: self.quantizer.encode(torch.from_numpy(x), **settings).numpy(),
            lambda codes: self.quantizer.decode(torch.from_numpy(codes)).numpy(),
        )


Model = FaissModel | MovingAverageModel | OwnModel
"""A fitted quantizer: `save`, `load`, and `codec` for the functions of a method."""


def fit_model(name: str, x: NDArray, code: Code, *, neural_seconds: float) -> Model:
    """Fit a quantizer as its library does by default, from a fixed seed.

    Args:
        name: A key of `MODELS`.
        x: Vectors, shape (N, dim), float32.
        code: Shape of the codes.
        neural_seconds: Time budget of the neural one.
    """
    dim, (depth, size, bits) = x.shape[1], (code.depth, code.size, code.bits)
    torch.manual_seed(0)
    if name == "vqp":
        return MovingAverageModel(dim, depth, size).fit(x)
    if name == "residual":
        return OwnModel(ResidualQuantizer(dim, depth, size).fit(x))
    if name == "grouped":
        grouped = GroupedResidualQuantizer(dim, depth // 2, size, groups=2, rotation="opq")
        return OwnModel(grouped.fit(x))
    if name == "neural":
        neural = NeuralResidualQuantizer(dim, depth, size)
        return OwnModel(neural.fit(x, time_budget=neural_seconds))
    index = {
        "faiss-rq": lambda: faiss.IndexResidualQuantizer(dim, depth, bits),
        "faiss-lsq": lambda: faiss.IndexLocalSearchQuantizer(dim, depth, bits),
        "faiss-prq": lambda: faiss.IndexProductResidualQuantizer(dim, 2, depth // 2, bits),
        "faiss-pq": lambda: faiss.IndexPQ(dim, depth, bits),
        "faiss-opq": lambda: faiss.IndexPreTransform(
            faiss.OPQMatrix(dim, depth), faiss.IndexPQ(dim, depth, bits)
        ),
    }[name]()
    index.train(x)
    return FaissModel(index)


def load_model(path: Path) -> Model:
    """Read the file of a quantizer."""
    kinds = {kind.suffix: kind for kind in (FaissModel, MovingAverageModel, OwnModel)}
    return kinds[path.suffix].load(path)


def model_suffix(name: str) -> str:
    """Return how the file of a model ends."""
    if name == "vqp":
        return MovingAverageModel.suffix
    return (FaissModel if name.startswith("faiss") else OwnModel).suffix
