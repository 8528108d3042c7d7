"""LPIPS: how far two images are apart for the features of VGG16.

The weights are two public files that the user gives: torchvision's VGG16 (`vgg16-397923af.pth`)
and the linear heads of LPIPS v0.1 (`vgg.pth` of its repository).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from imagegen.weights import file_sha256, read_weights
from rqtoolkit.errors import ArtifactError, ShapeError

__all__ = ["Perceptual", "WeightsFile", "load_perceptual"]

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SHIFT = (-0.030, -0.088, -0.188)  # of images in [-1, 1], after Zhang et al.'s code
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_PUBLIC = {"397923af": "torchvision's public vgg16-397923af.pth"}


@dataclass(frozen=True)
class WeightsFile:
    """A file that weights came from.

    Attributes:
        path: Where it was read.
        sha256: Checksum of its bytes.
    """

    path: str
    sha256: str

    @property
    def known_as(self) -> str | None:
        """What public file has this checksum; None for any other file."""
        return _PUBLIC.get(self.sha256[:8])

    def __str__(self) -> str:
        return f"{self.path} (sha256 {self.sha256[:16]}…, {self.known_as or 'not a file we know'})"


class Perceptual(nn.Module):
    """Learned perceptual distance of Zhang et al. with VGG16, frozen.

    The features after relu1_2, 2_2, 3_3, 4_3 and 5_3 are scaled to unit length over channels; their
    squared differences, weighted by channel, are averaged over places and summed over the five.
    The convolutions run in the precision of `vgg`, the distances in float32.

    Args:
        vgg: Weights of the convolutions as torchvision names them (`features.0.weight`, ...).
        heads: Weights of the heads as LPIPS names them (`lin0.model.1.weight`, ...).
        files: Files they came from, for the record.

    References:
        Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
        CVPR 2018, https://arxiv.org/abs/1801.03924, equation 1.
        Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
        ICLR 2015, https://arxiv.org/abs/1409.1556, configuration D.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        vgg: Mapping[str, Tensor],
        heads: Mapping[str, Tensor],
        *,
        files: Sequence[WeightsFile] = (),
    ) -> None:
        super().__init__()
        self.files = tuple(files)
        with torch.device("meta"):
            self.features, self.taps = _vgg16_features()
        self.load_state_dict({k: vgg[k] for k in self.state_dict()}, assign=True)
        for number, stage in enumerate(_STAGES):
            weight = heads[f"lin{number}.model.1.weight"].detach().float()
            self.register_buffer(f"head{number}", weight.reshape(stage[-1]))
        self.register_buffer("shift", torch.tensor(_SHIFT).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).reshape(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each pair of images.

        Args:
            x: Images in [-1, 1], shape (B, C, H, W), C 3 or 1 (grey, repeated), sides at least 16.
            y: Images of the same shape.

        Returns:
            Distances, shape (B,), float32, at least 0 where the heads' weights are.

        Raises:
            ShapeError: If the images are not of one such shape.
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < 16:
            raise ShapeError(
                f"Perceptual: images must have one shape (B, 3 or 1, H, W) with sides of at least "
                f"16; got {tuple(x.shape)} and {tuple(y.shape)}. Convert or resize them."
            )
        total = torch.zeros(len(x), device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            for number, (a, b) in enumerate(zip(self._layers(x), self._layers(y), strict=True)):
                difference = (_unit(a) - _unit(b)).square()
                head = self.get_buffer(f"head{number}")
                total = total + torch.einsum("bchw,c->bhw", difference, head).mean((1, 2))
        return total

    def _layers(self, images: Tensor) -> list[Tensor]:
        images = images.float().expand(-1, 3, -1, -1)
        weight = cast(nn.Conv2d, self.features[0]).weight
        x = ((images - self.shift) / self.scale).to(weight.dtype)
        layers = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                layers.append(x)
        return layers


def _vgg16_features() -> tuple[nn.Sequential, set[int]]:
    """Return VGG16 up to relu5_3, numbered as torchvision does, and where its five stages end."""
    layers: list[nn.Module] = []
    taps, width = set(), 3
    for stage in _STAGES:
        if layers:
            layers.append(nn.MaxPool2d(2, 2))
        for outputs in stage:
            layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            width = outputs
        taps.add(len(layers) - 1)
    return nn.Sequential(*layers), taps


def _unit(x: Tensor) -> Tensor:
    """Scale to unit length over channels; a vector of zeros stays and has gradient zero."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    return x.float() / (norm + _EPSILON)


def load_perceptual(
    vgg: str | Path,
    heads: str | Path,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
) -> Perceptual:
    """Read LPIPS from its two public files.

    Args:
        vgg: torchvision's VGG16, `.pth` or `.safetensors`; its classifier is not needed.
        heads: Linear heads of LPIPS v0.1 for VGG16, `.pth` or `.safetensors`.
        device: Where the weights go.
        dtype: Precision of the convolutions, float32 or bfloat16.

    Returns:
        The distance, frozen, channels last, with the checksums of both files in `.files`.

    Raises:
        ArtifactError: If a file is missing or unreadable, or lacks a tensor of the right shape.
    """
    with torch.device("meta"):
        expected = {f"features.{k}": v for k, v in _vgg16_features()[0].state_dict().items()}
        lines = {
            f"lin{number}.model.1.weight": torch.empty(1, stage[-1], 1, 1)
            for number, stage in enumerate(_STAGES)
        }
    read_vgg = _read(vgg, expected, "VGG16, torchvision's vgg16-397923af.pth")
    read_heads = _read(heads, lines, "the heads of LPIPS v0.1 for VGG16")
    files = [WeightsFile(str(path), file_sha256(path)) for path in (vgg, heads)]
    model = Perceptual(read_vgg, read_heads, files=files)
    model.features.to(dtype)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _read(path: str | Path, expected: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    found = read_weights(path, where=what)
    complaints = []
    for name, tensor in expected.items():
        if name not in found:
            complaints.append(f"no {name}")
        elif found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)} in place of {tuple(tensor.shape)}"
            complaints.append(f"{name} of shape {shapes}")
    if complaints:
        more = f"; and {len(complaints) - 5} more" * (len(complaints) > 5)
        raise ArtifactError(
            f"{what}: {path} is another file; got {'; '.join(complaints[:5])}{more}. Name "
            f"the right one."
        )
    return {name: found[name] for name in expected}
