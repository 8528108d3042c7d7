"""What a network must offer to score images through it."""

from typing import Protocol

import numpy as np

__all__ = ["Extractor"]


class Extractor(Protocol):
    """A network that maps images to features, and features to class probabilities.

    `imagegen.evaluate.Inception` is one, the run's own `imagegen.evaluate.Classifier` another.
    Scores through two of them never compare: every score carries the extractor's name and hash.

    Attributes:
        name: What scores on its features are called.
        sha256: Fingerprint of its weights.
        dim: Number of features.
        resize: How images reach the size it sees, in words.
    """

    name: str
    dim: int
    resize: str

    @property
    def sha256(self) -> str:
        """Fingerprint of the weights."""
        ...

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return features (N, dim), float32, of uint8 images (N, H, W, C)."""
        ...

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return class probabilities (N, K), float64, of features (N, dim)."""
        ...
