"""The residual quantizer with scikit-learn's face."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.arguments import check_sizes
from rqtoolkit.functional.rate_distortion import distortion
from rqtoolkit.quantizers import ResidualQuantizer

__all__ = ["ResidualKMeans"]


class ResidualKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Residual k-means: each vector becomes `depth` codes, coarse to fine.

    Parameters:
        depth: Number of residual levels.
        codebook_size: Entries of each level, or a sequence of one number per level.
        shared_codebook: One table for all levels.
        n_init: Short k-means++ starts a level, of which the best goes on.
        max_iter: Lloyd iterations a level.
        rounds: Passes of joint least squares over all levels, at most; 0 leaves it to k-means.
        beam: Prefixes kept per vector, in training and in `transform`.
        random_state: Seed or RandomState; fixes the result.

    Attributes:
        quantizer_: The fitted `ResidualQuantizer`.
        codebooks_: Tables, shape (depth, K, n_features), or (1, K, n_features) where shared.
        n_features_in_: Vector size seen in `fit`.
        n_iter_: Lloyd iterations run a level.

    Example:
        >>> codes = ResidualKMeans(depth=2, codebook_size=4, random_state=0).fit_transform(X)
        >>> codes.shape, codes.dtype
        ((100, 2), dtype('int64'))
    """

    def __init__(
        self,
        depth: int = 4,
        codebook_size: Any = 256,
        *,
        shared_codebook: bool = False,
        n_init: int = 1,
        max_iter: int = 40,
        rounds: int = 4,
        beam: int = 5,
        random_state: Any = None,
    ) -> None:
        self.depth = depth
        self.codebook_size = codebook_size
        self.shared_codebook = shared_codebook
        self.n_init = n_init
        self.max_iter = max_iter
        self.rounds = rounds
        self.beam = beam
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> "ResidualKMeans":  # noqa: ARG002
        """Fit the codebooks.

        Args:
            X: Vectors, shape (n_samples, n_features), with at least codebook_size rows.
            y: Ignored.

        Raises:
            DataError: If there are fewer rows than codebook entries.
            ValueError: As scikit-learn's validation, for other unusable input.
        """
        X = self._validate(X, reset=True)
        sizes = check_sizes("ResidualKMeans", self.codebook_size, self.depth)
        largest = max(sizes)
        if len(X) < largest:
            raise DataError(
                f"ResidualKMeans.fit: codebook_size={largest} needs at least as many vectors; "
                f"got n_samples={len(X)}. Give more vectors or a smaller codebook_size."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):  # random_state is the only source of chance
            quantizer = ResidualQuantizer(
                X.shape[1], self.depth, self.codebook_size, shared_codebook=self.shared_codebook
            )
        quantizer.fit(
            X,
            iterations=self.max_iter,
            starts=self.n_init,
            rounds=self.rounds,
            beam=self.beam,
            seed=seed,
        )
        self.quantizer_ = quantizer
        self.codebooks_ = quantizer.codebooks.numpy()
        self.n_iter_ = self.max_iter
        self._n_features_out = self.depth
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.int64]:
        """Encode vectors; returns codes of shape (n_samples, depth)."""
        check_is_fitted(self)
        x = torch.from_numpy(np.require(self._validate(X, reset=False), requirements="W"))
        return self.quantizer_.encode(x).numpy()

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Decode codes, or any prefix of their levels.

        Args:
            X: Codes, shape (n_samples, d), integers, d at most depth.

        Returns:
            Vectors, shape (n_samples, n_features).
        """
        check_is_fitted(self)
        codes = np.asarray(X)
        if codes.ndim != 2:
            raise ShapeError(
                f"ResidualKMeans.inverse_transform: codes have to have shape (n_samples, d); "
                f"got {codes.shape}."
            )
        if codes.dtype.kind not in "iu":
            raise DataError(
                f"ResidualKMeans.inverse_transform: codes have to be integers; got {codes.dtype}."
            )
        return self.quantizer_.decode(torch.from_numpy(codes.astype(np.int64))).numpy()

    def score(self, X: ArrayLike, y: Any = None) -> float:  # noqa: ARG002
        """Return minus the distortion of X: squared error by vector, averaged; higher is better."""
        return -distortion(
            self._validate(X, reset=False), self.inverse_transform(self.transform(X))
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # codes are integers whatever goes in
        return tags

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[np.float32]:
        return validate_data(self, X, reset=reset, dtype=np.float32, order="C")
