"""What all quantizers do alike: shapes in and out, decoding, freezing, one file each."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.functional.arguments import check_count, plain
from rqtoolkit.io.artifact import constructing, read_artifact, write_artifact
from rqtoolkit.quantizers import checks

__all__ = ["Quantizer"]


class Quantizer(nn.Module, ABC):
    """Vectors to stacks of codes and back.

    A kind of quantizer names its constructor's arguments, all of them attributes, and says what a
    file keeps beside them.

    Attributes:
        dim: Vector size.
        depth: Residual levels.
        codebook_sizes: Entries of each code's table, one number for each code of a vector.
        channels_first: Whether vectors are (B, dim, ...) in place of (..., dim).
        beam: Prefixes that `encode` keeps unless told otherwise.
        depth_dropout: Chance that a sample uses only some of the levels in training mode.
        frozen: Whether `freeze` was called.
    """

    arguments: ClassVar[tuple[str, ...]]

    dim: int
    depth: int
    codebook_sizes: tuple[int, ...]
    channels_first: bool = False
    beam: int = 1
    depth_dropout: float = 0.0
    frozen: bool = False

    @abstractmethod
    def encode(self, x: Tensor, *, beam: int | None = None) -> Tensor:
        """Encode vectors (..., dim) as codes (..., D), int64; beam None is `self.beam`."""

    @abstractmethod
    def _sum(self, codes: Tensor) -> Tensor:
        """Return what the first d codes (N, d) stand for, shape (N, dim), float32."""

    @abstractmethod
    def _stored(self) -> dict[str, Tensor]:
        """Return the tensors of a file, by name."""

    @abstractmethod
    def _adopt(self, path: str | Path, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a file, or refuse what does not fit the arguments.

        Raises:
            ArtifactError: If a tensor is missing, left over or misshaped.
        """

    def forward(self, *_: Any, **__: Any) -> Any:
        """Refuse to be a layer; quantizers that can learn inside a network put theirs in place.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"{type(self).__name__} is no layer of a network; got a call of the module. Call "
            "fit(X), encode(x) and decode(codes), or take a ResidualQuantizer."
        )

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors that codes stand for; any prefix of a stack decodes.

        Args:
            codes: Shape (..., d), integers, d from 1 to the codes of a vector.

        Returns:
            Vectors, shape (..., dim), or (B, dim, ...) with channels_first, float32.

        Raises:
            ShapeError: If d exceeds that.
            DataError: If a code is no integer or out of range, as the -1 of padding is.
        """
        flat = checks.check_codes(codes, self.codebook_sizes, self._name("decode"))
        return self._restore(self._sum(flat), codes.shape[:-1])

    def freeze(self) -> Self:
        """Stop every table, statistic and restart, in training mode too; return the quantizer.

        Codes are still drawn and levels dropped where the arguments say so. `fit` is refused until
        `unfreeze`. Not part of what `save` and `state_dict` keep.
        """
        return self._set_frozen(True)

    def unfreeze(self) -> Self:
        """Let everything that `freeze` stopped learn again; return the quantizer."""
        return self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> Self:
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.frozen = frozen
        return self.requires_grad_(not frozen)

    def save(self, path: str | Path) -> None:
        """Write tensors and constructor arguments as one safetensors file, atomically.

        A quantizer in a network that is still gathering vectors for its k-means start loses them;
        `state_dict` keeps them.

        Args:
            path: File to write.
        """
        write_artifact(
            path,
            class_name=type(self).__name__,
            arguments=self._settings(),
            tensors=self._stored(),
        )

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a quantizer that `save` wrote, in eval mode.

        Args:
            path: File to read.
            device: Where the tensors go.

        Raises:
            ArtifactError: If the file is missing, damaged, foreign, of an unknown version, or
                holds another kind of quantizer.
        """
        arguments, tensors = read_artifact(path, class_name=cls.__name__, device=device)
        return cls.from_stored(path, arguments, tensors, device)

    def stored(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return constructor arguments, all of JSON's types, and tensors by name, as files do."""
        return self._settings(), self._stored()

    @classmethod
    def from_stored(
        cls,
        path: str | Path,
        arguments: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        device: str | torch.device = "cpu",
    ) -> Self:
        """Make a quantizer of what `stored` returned, in eval mode.

        Args:
            path: File they were read from, for messages.
            arguments: Constructor arguments.
            tensors: By name.
            device: Where the tensors go.

        Raises:
            ArtifactError: If the arguments make no quantizer, or the tensors do not fit it.
        """
        _check_contents(path, arguments, tensors)
        with constructing(path), torch.random.fork_rng(devices=[]):
            quantizer = cls(**arguments).to(device)
        quantizer._adopt(path, tensors)
        return quantizer.eval()

    def extra_repr(self) -> str:
        """Describe the quantizer in `print(module)`."""
        return ", ".join(f"{name}={value!r}" for name, value in self._settings().items())

    def _settings(self) -> dict[str, Any]:
        return {name: plain(getattr(self, name)) for name in self.arguments}

    def _name(self, method: str) -> str:
        """Return class and method, for messages."""
        return f"{type(self).__name__}.{method}"

    def _flatten(self, x: Tensor, method: str) -> tuple[Tensor, torch.Size]:
        """Return x as (N, dim) float32, and the shape of its other axes."""
        where = self._name(method)
        last = checks.channels_last(x, where, self.dim, channels_first=self.channels_first)
        return last.reshape(-1, self.dim).float(), last.shape[:-1]

    def _to_encode(
        self, x: Tensor, beam: int | None, depth: int | None
    ) -> tuple[Tensor, torch.Size, int, int]:
        """Check what `encode` is given.

        Returns:
            x as (N, dim) float32, the shape of its other axes, the beam and the depth to use.

        Raises:
            ShapeError: If x does not have dim channels.
            DataError: If x has NaN or infinite values.
            ConfigError: If beam or depth is out of range.
        """
        where = self._name("encode")
        beam = check_count(where, "beam", self.beam if beam is None else beam)
        depth = checks.check_depth(where, self.depth if depth is None else depth, self.depth)
        flat, shape = self._flatten(x, "encode")
        if not torch.compiler.is_compiling():
            checks.check_finite(flat, where)
        return flat, shape, beam, depth

    def _restore(self, flat: Tensor, shape: Sequence[int]) -> Tensor:
        vectors = flat.reshape(*shape, self.dim)
        return vectors.movedim(-1, 1) if self.channels_first else vectors


def _check_contents(
    path: str | Path, arguments: Mapping[str, object], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse numbers that no quantizer has, before anything of the size they claim is made.

    Raises:
        ArtifactError: If there are any.
    """
    stored = sum(tensor.numel() for tensor in tensors.values())
    for name in ("dim", "depth"):
        claimed = arguments.get(name)
        if isinstance(claimed, int) and claimed > stored:
            raise ArtifactError(
                f"load: {path} has {name}={claimed} in its header; got {stored} numbers in all. "
                "Write it again."
            )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ArtifactError(
                f"load: {path} is damaged; got NaN or infinity in {name}. Write it again."
            )
