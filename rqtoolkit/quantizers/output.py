"""What quantizers return."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rqtoolkit.functional import rate_distortion

__all__ = ["CodeStats", "QuantizerOutput", "SoftCodes"]


@dataclass(frozen=True)
class CodeStats:
    """How the entries of each level were used in one batch; computed when read."""

    codes: Tensor
    codebook_sizes: Sequence[int]

    @property
    def usage(self) -> list[float]:
        """Share of each level's entries chosen at least once; 0 without vectors."""
        if not len(self.codes):
            return [0.0] * len(self.codebook_sizes)
        return rate_distortion.usage(self.codes, self.codebook_sizes)

    @property
    def perplexity(self) -> list[float]:
        """Two to the entropy of each level's codes, entries in effective use; 0 without vectors."""
        if not len(self.codes):
            return [0.0] * len(self.codebook_sizes)
        return rate_distortion.perplexity(self.codes, self.codebook_sizes)


@dataclass(frozen=True)
class QuantizerOutput:
    """Result of a quantizer's forward.

    Attributes:
        quantized: Sum of the chosen codewords, in shape and dtype of the input; its gradient with
            respect to the input is the identity (straight-through).
        codes: Shape (..., depth), int64.
        commitment_loss: Scalar: mean over levels and elements of (x − detached partial sum)²
            (Lee et al., CVPR 2022, Eq. 4), unweighted.
        codebook_loss: Scalar: mean over levels and elements of (detached residual − codeword)²
            (van den Oord et al., 2017, Eq. 3); 0 where codebooks move by EMA.
        stats: Usage and perplexity by level.
    """

    quantized: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    stats: CodeStats


@dataclass(frozen=True)
class SoftCodes:
    """Codes with the distribution that each was taken from.

    Attributes:
        codes: Shape (..., depth), int64.
        probabilities: Shape (..., depth, K), float32; 0 beyond a level's own size.
    """

    codes: Tensor
    probabilities: Tensor
