"""The classifier that evaluation looks through, trained on real images by one fixed recipe."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagegen.images import ImageSet, to_float
from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.io.artifact import check_tensors, read_artifact, write_artifact

__all__ = ["Classifier", "train_classifier"]

# The recipe. Scores are comparable only while every one of these stays as it is: a change of any
# is a new version in the extractor's name.
VERSION = "cnn-v1"
WIDTHS = (24, 48, 96)
FEATURES = 64
DROPOUT = 0.2
BATCH = 64
PASSES, LEAST_IMAGES = 10, 40_000  # a small set is seen more often
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.05
SHIFT = 1  # pixels; one draw a batch


class Classifier(nn.Module):
    """A small convolutional network: features, and class logits linear in them.

    Blocks of 3x3 convolution, batch normalisation, ReLU and 2x2 max pooling down to 4x4, at least
    three of them; then a fully connected layer, whose ReLU outputs are the features.

    Args:
        channels: 1 or 3.
        resolution: Height and width of the images it sees.
        num_classes: Number of classes.
        name: What scores on its features are called.
    """

    dim = FEATURES
    resize = "none: looks at images of the run's own size"

    def __init__(
        self, *, channels: int, resolution: int, num_classes: int, name: str = VERSION
    ) -> None:
        super().__init__()
        self.channels, self.resolution = channels, resolution
        self.num_classes, self.name = num_classes, name
        layers: list[nn.Module] = []
        width, side, blocks = channels, resolution, 0
        while side > 4 or blocks < len(WIDTHS):
            previous, width = width, WIDTHS[min(blocks, len(WIDTHS) - 1)]
            layers.append(nn.Conv2d(previous, width, 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            if side > 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            blocks += 1
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(width * side * side, FEATURES)
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return class logits (B, num_classes) of images (B, C, H, W) in [-1, 1]."""
        features = F.relu(self.hidden(self.body(x)))
        return self.head(F.dropout(features, DROPOUT, self.training))

    @torch.no_grad()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the features of uint8 images (N, H, W, C): shape (N, 64), float32.

        Raises:
            ShapeError: If the images are not of the size the classifier was trained for.
        """
        size = (self.resolution, self.resolution, self.channels)
        if images.ndim != 4 or images.shape[1:] != size:
            raise ShapeError(
                f"Classifier.features: images must be (N, {', '.join(map(str, size))}); "
                f"got shape {images.shape}. Evaluate at the resolution of the training images."
            )
        if self.training:
            raise RuntimeError("Classifier.features: the classifier is in training mode; eval().")
        device = self.head.weight.device
        parts = [
            F.relu(self.hidden(self.body(to_float(images[start : start + 256]).to(device))))
            for start in range(0, len(images), 256)
        ]
        return torch.cat(parts).cpu().numpy() if parts else np.empty((0, FEATURES), np.float32)

    @torch.no_grad()
    def classify(self, features: np.ndarray) -> np.ndarray:
        """Return the most likely class of each row of features, shape (N,), int64."""
        logits = self.head(torch.from_numpy(features).to(self.head.weight.device))
        return logits.argmax(1).cpu().numpy()

    @torch.no_grad()
    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return class probabilities of each row of features, shape (N, num_classes), float64."""
        logits = self.head(torch.from_numpy(features).to(self.head.weight.device))
        return logits.double().softmax(1).cpu().numpy()

    @property
    def sha256(self) -> str:
        """Fingerprint of all weights: two scores compare only where it is the same."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write one .safetensors artifact.

        Raises:
            ArtifactError: If the folder is missing.
        """
        arguments = {
            "channels": self.channels,
            "resolution": self.resolution,
            "num_classes": self.num_classes,
            "name": self.name,
        }
        write_artifact(
            path, class_name="Classifier", arguments=arguments, tensors=self.state_dict()
        )

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Classifier:
        """Read what `save` wrote, ready to evaluate.

        Raises:
            ArtifactError: If the file is missing, truncated, foreign or of another class.
        """
        arguments, tensors = read_artifact(path, class_name="Classifier", device=device)
        classifier = cls(**arguments).to(device)
        check_tensors(path, classifier.state_dict(), tensors)
        classifier.load_state_dict(tensors)
        return classifier.eval()


def train_classifier(
    train: ImageSet,
    *,
    name: str = VERSION,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Classifier:
    """Train the evaluation classifier on real training images, never on held-out ones.

    The recipe is fixed: AdamW with one cycle of the learning rate, batches of 64, ten passes or
    40,000 images, whichever is more, shifts by one pixel. About 10 CPU seconds on 16x16 digits,
    with 99.4% of the held-out ones right.

    Args:
        train: Images with classes, square.
        name: What scores on its features are called, as in "digits-cnn-v1".
        seed: Fixes initial weights, order and shifts; on one machine, the result to the bit.
        device: Where to train.
        progress: Called as progress(description, done, total).

    Returns:
        The classifier in evaluation mode.

    Raises:
        DataError: If the images have no classes, are fewer than a batch, or have one class only.
        ShapeError: If the images are not square.
    """
    if train.labels is None or train.num_classes is None:
        raise DataError(
            "train_classifier: train must have classes; got images without labels. "
            "Give them a class folder each, or y_train and y_test."
        )
    if len(np.unique(train.labels)) < 2 or len(train) < BATCH:
        raise DataError(
            f"train_classifier: train must have at least two classes and {BATCH} images; got "
            f"{len(np.unique(train.labels))} classes and {len(train)} images. Use more images."
        )
    height, width = train.resolution
    if height != width:
        raise ShapeError(
            f"train_classifier: images must be square; got {height}x{width}. Use open_images."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(
            channels=train.channels, resolution=height, num_classes=train.num_classes, name=name
        )
        return _fit(classifier.to(device), train, progress)


def _fit(classifier: Classifier, train: ImageSet, progress: Progress | None) -> Classifier:
    images, labels = to_float(train.images), torch.from_numpy(train.labels)
    device = classifier.head.weight.device
    steps_a_pass = len(images) // BATCH
    steps = max(PASSES * len(images), LEAST_IMAGES) // BATCH
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    classifier.train()
    for step in range(steps):
        if step % steps_a_pass == 0:
            order = torch.randperm(len(images))
        rows = order[(step % steps_a_pass) * BATCH :][:BATCH]
        logits = classifier(_shifted(images[rows]).to(device))
        loss = F.cross_entropy(logits, labels[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(progress, "training the classifier", step + 1, steps)
    return classifier.eval()


def _shifted(images: Tensor) -> Tensor:
    """Move a batch by up to a pixel each way, repeating the border."""
    height, width = images.shape[2:]
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    padded = F.pad(images, (SHIFT,) * 4, mode="replicate")
    return padded[:, :, down : down + height, right : right + width]
