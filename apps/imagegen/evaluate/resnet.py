"""ResNets as plain torch modules that read torchvision's weights: classifiers for rejection.

The paper keeps the samples that a ResNet-101 trained on ImageNet is surest of. The depth of the
network and its number of classes follow from the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagegen.weights import file_sha256, fill_weights, read_weights
from rqtoolkit.errors import ArtifactError, ShapeError

__all__ = ["ResNet", "is_resnet"]

WIDTHS = (64, 128, 256, 512)
SIDE = 224
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision has them
BATCH = 50


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 around a bottleneck."""

    def __init__(self, channels: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        shapes = [(channels, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            shapes = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        self.steps = len(shapes)
        for number, (a, b, kernel, step) in enumerate(shapes, start=1):
            conv = nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(b))
        self.downsample = nn.Sequential()
        if stride != 1 or channels != out:
            shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.steps + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = F.relu(y) if number < self.steps else y
        return F.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """A residual network in the layout of torchvision's files (`resnet101-cd907fc2.pth`, …).

    A feature extractor of `imagegen.evaluate.extractors`. Images are resized to 224x224 as a whole
    (bilinear, averaging), since samples are squares already, and normalised by ImageNet's channels.

    Args:
        blocks: Blocks of each of the four layers: (3, 4, 23, 3) is ResNet-101.
        bottleneck: Whether blocks are bottlenecks, as from ResNet-50 on.
        num_classes: Number of classes.

    References:
        He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
        https://arxiv.org/abs/1512.03385.
    """

    resize = f"bilinear with averaging to {SIDE}x{SIDE}, ImageNet mean and spread"

    def __init__(self, blocks: tuple[int, ...], *, bottleneck: bool, num_classes: int) -> None:
        super().__init__()
        self.sha256 = ""
        self.num_classes = num_classes
        self.name = f"resnet-{sum(blocks) * (3 if bottleneck else 2) + 2}"
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for number, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), start=1):
            layers = []
            for place in range(count):
                stride = 2 if place == 0 and number > 1 else 1
                layers.append(_Block(channels, width, stride, bottleneck=bottleneck))
                channels = 4 * width if bottleneck else width
            self.add_module(f"layer{number}", nn.Sequential(*layers))
        self.dim = channels
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, dim) of normalised images (B, 3, H, W)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x.mean((2, 3))

    @torch.no_grad()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the features of uint8 images (N, H, W, 1 or 3): shape (N, dim), float32.

        Raises:
            ShapeError: If the images are not of such a shape.
        """
        if images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ShapeError(
                f"ResNet.features: images must be (N, H, W, 1 or 3); got shape {images.shape}. "
                f"Convert them to RGB."
            )
        device = self.fc.weight.device
        mean, spread = (torch.tensor(x, device=device).view(3, 1, 1) for x in (MEAN, SPREAD))
        found = np.empty((len(images), self.dim), np.float32)
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH]))
            pixels = batch.to(device).permute(0, 3, 1, 2).float().div(255).expand(-1, 3, -1, -1)
            if pixels.shape[2:] != (SIDE, SIDE):
                pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
            found[start : start + BATCH] = self((pixels - mean) / spread).cpu().numpy()
        return found

    @torch.no_grad()
    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return class probabilities (N, num_classes), float64, of features (N, dim)."""
        logits = self.fc(torch.from_numpy(features).to(self.fc.weight.device))
        return logits.double().softmax(1).cpu().numpy()

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> ResNet:
        """Read a file of torchvision's layout; nothing in it is run.

        Raises:
            ArtifactError: If it is missing, damaged, or the weights of another network.
        """
        tensors = read_weights(path, where="ResNet.load")
        if not is_resnet(tensors):
            raise ArtifactError(
                f"ResNet.load: {path} holds no ResNet; got no layer4.0.conv1.weight. Use a file of "
                f"torchvision's, such as resnet101-cd907fc2.pth."
            )
        blocks = []
        for number in range(1, 5):
            places = [re.match(rf"layer{number}\.(\d+)\.", name) for name in tensors]
            blocks.append(1 + max(int(found[1]) for found in places if found))
        model = cls(
            tuple(blocks),
            bottleneck="layer1.0.conv3.weight" in tensors,
            num_classes=len(tensors["fc.weight"]),
        )
        fill_weights(model, tensors, path=path, where="ResNet.load")
        model.sha256 = file_sha256(path)
        return model.to(device).eval().requires_grad_(False)


def is_resnet(tensors: Mapping[str, Tensor]) -> bool:
    """Say whether tensors by name are those of a ResNet with a classifier."""
    return {"conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight", "fc.weight"} <= set(
        tensors
    )
