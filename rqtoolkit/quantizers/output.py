"""What quantizers return."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rqtoolkit.functional import rate_distortion

__all__ = ["CodeStats", "QuantizerOutput", "SoftCodes"]


@dataclass(frozen=True)
class CodeStats:
    """How the entries of each level were used in one batch; computed when read.

    Keeping them costs no more than the tensors that are there anyway, and nothing waits for a
    device before a figure is read.

    Args:
        codes: Shape (..., depth); rows of -1 are padding.
        codebook_sizes: Entries of each level, depth of them or more.
        errors: Squared error after each level, shape (depth,).
        dead_entries: How many entries of each table were found dead, shape (T,). None where
            entries never die.
    """

    codes: Tensor
    codebook_sizes: Sequence[int]
    errors: Tensor | None = None
    dead_entries: Tensor | None = None

    @property
    def usage(self) -> list[float]:
        """Share of each level's entries chosen at least once; 0 without vectors."""
        return self._of_codes(rate_distortion.usage)

    @property
    def perplexity(self) -> list[float]:
        """Two to the entropy of each level's codes, entries in effective use; 0 without vectors."""
        return self._of_codes(rate_distortion.perplexity)

    @property
    def distortion(self) -> list[float]:
        """Squared error after each level, summed over dim, averaged over vectors."""
        return [] if self.errors is None else self.errors.tolist()

    @property
    def dead(self) -> list[int]:
        """Entries of each table found dead by this batch; in training they are restarted by now."""
        return [] if self.dead_entries is None else self.dead_entries.tolist()

    def _of_codes(self, figure: Callable[[Tensor, Sequence[int]], list[float]]) -> list[float]:
        sizes = self.codebook_sizes[: self.codes.shape[-1]]
        codes = self.codes.reshape(-1, len(sizes))
        codes = codes[codes[:, 0] >= 0]
        return figure(codes, sizes) if len(codes) else [0.0] * len(sizes)


@dataclass(frozen=True)
class QuantizerOutput:
    """Result of a quantizer's forward.

    Attributes:
        quantized: Sum of the chosen codewords, in shape and dtype of the input, with the gradient
            of the quantizer's estimator; 0 in padding.
        codes: Shape (..., depth), int64; -1 in padding.
        commitment_loss: Scalar: mean over levels in use and elements of (x − detached partial sum)²
            (Lee et al., CVPR 2022, Eq. 4), unweighted; with factorised codes, of what each level
            projects and its detached codeword.
        codebook_loss: Scalar: mean over levels in use and elements of (detached residual −
            codeword)² (van den Oord et al., 2017, Eq. 3); 0 where codebooks move by EMA.
        stats: Usage, perplexity, distortion and dead entries.
        depths: Levels that `quantized` uses of each vector, shape (...), int64, where some were
            dropped; codes are there for all levels.
        entropy_loss: Scalar: entropy of soft codes of a vector minus that over the batch, of
            `ResidualBinaryQuantizer`; None where nothing needs it.
    """

    quantized: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    stats: CodeStats
    depths: Tensor | None = None
    entropy_loss: Tensor | None = None


@dataclass(frozen=True)
class SoftCodes:
    """Codes with the distribution that each was taken from.

    Attributes:
        codes: Shape (..., depth), int64.
        probabilities: Shape (..., depth, K), float32; 0 beyond a level's own size.
    """

    codes: Tensor
    probabilities: Tensor
