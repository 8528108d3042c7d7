"""The Inception network of FID as a plain torch module that reads its public weights file.

It is the network of December 2015 from TensorFlow's model zoo, which differs from torchvision's:
1,008 classes, average pools that leave padding out of the mean, a max pool in the last block. The
file `pt_inception-2015-12-05-6726825d.pth` holds its weights for PyTorch; modules carry the names
of that file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagegen.evaluate.resize import resize_bilinear
from imagegen.weights import file_sha256, fill_weights, read_weights
from rqtoolkit.errors import ShapeError

__all__ = ["KNOWN_SHA256", "Inception"]

KNOWN_SHA256 = "6726825d"
"""How the checksum of the public file begins; its name carries these digits."""

SIDE = 299
FEATURES, CLASSES = 2048, 1008
BATCH = 50


class _Conv(nn.Module):
    """Convolution without bias, batch normalisation (eps 1e-3), ReLU."""

    def __init__(
        self, channels: int, out: int, kernel: Any, stride: int = 1, *, pad: bool = True
    ) -> None:
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        # Of stride 1 it keeps the size of the map, with two exceptions at the bottom.
        padding = tuple(side // 2 for side in kernel) if pad and stride == 1 else 0
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _chain(module: nn.Module, name: str, x: Tensor) -> Tensor:
    """Apply the submodules name_1, name_2, … in turn."""
    number = 1
    while hasattr(module, f"{name}_{number}"):
        x = getattr(module, f"{name}_{number}")(x)
        number += 1
    return x


class _BlockA(nn.Module):
    """35x35: 1x1, 5x5, two 3x3, and a pooled branch."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(channels, 64, 1)
        self.branch5x5_1 = _Conv(channels, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5)
        self.branch3x3dbl_1 = _Conv(channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3)
        self.branch_pool = _Conv(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        small, large = _chain(self, "branch5x5", x), _chain(self, "branch3x3dbl", x)
        return torch.cat([self.branch1x1(x), small, large, self.branch_pool(_mean_pool(x))], 1)


class _BlockB(nn.Module):
    """35x35 to 17x17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(channels, 384, 3, 2)
        self.branch3x3dbl_1 = _Conv(channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        large = _chain(self, "branch3x3dbl", x)
        return torch.cat([self.branch3x3(x), large, F.max_pool2d(x, 3, 2)], 1)


class _BlockC(nn.Module):
    """17x17: 1x1, one and two 7x7 taken apart into 1x7 and 7x1, and a pooled branch."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        wide, tall = (1, 7), (7, 1)
        self.branch1x1 = _Conv(channels, 192, 1)
        self.branch7x7_1 = _Conv(channels, inner, 1)
        self.branch7x7_2 = _Conv(inner, inner, wide)
        self.branch7x7_3 = _Conv(inner, 192, tall)
        self.branch7x7dbl_1 = _Conv(channels, inner, 1)
        self.branch7x7dbl_2 = _Conv(inner, inner, tall)
        self.branch7x7dbl_3 = _Conv(inner, inner, wide)
        self.branch7x7dbl_4 = _Conv(inner, inner, tall)
        self.branch7x7dbl_5 = _Conv(inner, 192, wide)
        self.branch_pool = _Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once, twice = _chain(self, "branch7x7", x), _chain(self, "branch7x7dbl", x)
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_mean_pool(x))], 1)


class _BlockD(nn.Module):
    """17x17 to 8x8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(channels, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, 2)
        self.branch7x7x3_1 = _Conv(channels, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = _Conv(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        small, large = _chain(self, "branch3x3", x), _chain(self, "branch7x7x3", x)
        return torch.cat([small, large, F.max_pool2d(x, 3, 2)], 1)


class _BlockE(nn.Module):
    """8x8: branches that end in 1x3 and 3x1 side by side."""

    def __init__(self, channels: int, *, max_pool: bool) -> None:
        super().__init__()
        wide, tall = (1, 3), (3, 1)
        self.max_pool = max_pool
        self.branch1x1 = _Conv(channels, 320, 1)
        self.branch3x3_1 = _Conv(channels, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, wide)
        self.branch3x3_2b = _Conv(384, 384, tall)
        self.branch3x3dbl_1 = _Conv(channels, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3)
        self.branch3x3dbl_3a = _Conv(384, 384, wide)
        self.branch3x3dbl_3b = _Conv(384, 384, tall)
        self.branch_pool = _Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        small, large = self.branch3x3_1(x), _chain(self, "branch3x3dbl", x)
        ends = [self.branch3x3_2a(small), self.branch3x3_2b(small)]
        ends += [self.branch3x3dbl_3a(large), self.branch3x3dbl_3b(large)]
        pooled = F.max_pool2d(x, 3, 1, 1) if self.max_pool else _mean_pool(x)
        return torch.cat([self.branch1x1(x), *ends, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    """Inception-v3 as FID knows it: 2,048 pooled features, 1,008 class logits; 23.9M parameters.

    A feature extractor of `imagegen.evaluate.extractors`. It has no useful weights until `load`,
    and bears the plain name of the network only with those of the public file.

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
        Heusel et al., "GANs Trained by a Two Time-Scale Update Rule…", NeurIPS 2017.
    """

    name = "inception-2015-12-05"
    dim = FEATURES
    resize = f"TensorFlow 1 bilinear to {SIDE}x{SIDE}, (x - 128) / 128"

    def __init__(self) -> None:
        super().__init__()
        self.sha256 = ""
        self.name = f"{Inception.name}, not the public file"
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, pad=False)
        self.Mixed_5b = _BlockA(192, 32)
        self.Mixed_5c = _BlockA(256, 64)
        self.Mixed_5d = _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(768, 128)
        self.Mixed_6c = _BlockC(768, 160)
        self.Mixed_6d = _BlockC(768, 160)
        self.Mixed_6e = _BlockC(768, 192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b = _BlockE(1280, max_pool=False)
        self.Mixed_7c = _BlockE(2048, max_pool=True)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, 2048) of images (B, 3, H, W) as the network takes them.

        Args:
            x: Resized to 299x299 and scaled to [-1, 1) already; 75x75 is the least it can work on.
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))

    @torch.no_grad()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the features of uint8 images (N, H, W, 1 or 3): shape (N, 2048), float32.

        Grey images count as colour images of three equal channels.

        Raises:
            ShapeError: If the images are not of such a shape.
        """
        if images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ShapeError(
                f"Inception.features: images must be (N, H, W, 1 or 3); got shape {images.shape}. "
                f"Convert them to RGB."
            )
        found = np.empty((len(images), FEATURES), np.float32)
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH]))
            pixels = batch.to(self.fc.weight.device).permute(0, 3, 1, 2).float()
            pixels = resize_bilinear(pixels.expand(-1, 3, -1, -1), SIDE, SIDE)
            found[start : start + BATCH] = self((pixels - 128) / 128).cpu().numpy()
        return found

    @torch.no_grad()
    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return class probabilities (N, 1008) of features, as the Inception score takes them.

        The bias of the last layer is left out, as in the score's first code and every one since.
        """
        weight = self.fc.weight
        logits = torch.from_numpy(features).to(weight.device) @ weight.T
        return logits.double().softmax(1).cpu().numpy()

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Inception:
        """Read the public weights, ready to evaluate; nothing in the file is run.

        Args:
            path: `pt_inception-2015-12-05-6726825d.pth`, or the same tensors as .safetensors.
            device: Where the network shall live.

        Raises:
            ArtifactError: If the file is missing or damaged, or a tensor is missing, not of this
                network, or of another shape.
        """
        model = cls()
        tensors = read_weights(path, where="Inception.load")
        fill_weights(model, tensors, path=path, where="Inception.load")
        model.sha256 = file_sha256(path)
        if model.sha256.startswith(KNOWN_SHA256):
            model.name = Inception.name
        return model.to(device).eval().requires_grad_(False)
