"""Residual binary quantization: a sign for each of a few dimensions, level by level."""

from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.quantizers.grids import GridPass, GridQuantizer
from rqtoolkit.quantizers.synchronisation import sum_over_ranks

__all__ = ["ResidualBinaryQuantizer", "bit_entropy"]


class ResidualBinaryQuantizer(GridQuantizer):
    """Keep the signs of a few dimensions, and of what is left over at half the scale, and so on.

    Lookup-free quantization, and with `spherical` binary spherical quantization: 2^bits codewords
    a level without a table. Signs alone may come to say little (always the same, or by chance), so
    add `entropy_loss` to the loss, and `commitment_loss`, which keeps vectors near their signs:

        loss = mse + 0.25 * out.commitment_loss + 0.1 * out.entropy_loss

    `entropy_loss` is the mean over levels of the entropy of a vector's soft bits, which sinks as
    bits grow certain, minus `diversity` times the entropy of their mean over the batch (over all
    processes, in training mode), which grows as all codes are used; in nats. Bits are taken to be
    independent (Zhao et al., section 4.2), so memory does not grow with 2^bits: for a single vector
    that is exact, for the batch an upper bound. Everything is float32, also inside a
    half-precision parent.

    Args:
        dim: Vector size; a linear map leads to `bits` dimensions and one back where it is another.
        depth: Number of residual levels.
        bits: Of each code, at most 62; the first dimension gives the most significant.
        spherical: Put vectors on the unit sphere first; codewords are on it too.
        temperature: Of the soft bits: dimension i of level d is positive with probability
            σ(4 r_i / (temperature · s_d)), s_d the scale of the level. Small ones move only what
            is close to changing its sign.
        diversity: Weight of the entropy over the batch.
        depth_dropout: Chance, in training mode, that a sample (an index of the first axis) uses
            only the first 1, 2, … or depth levels, all equally likely.
        channels_first: Inputs are (B, dim, ...) in place of (..., dim). Codes stay depth-last.

    Raises:
        ConfigError: If an argument is out of its range.

    Example:
        >>> quantizer = ResidualBinaryQuantizer(dim=8, depth=2, bits=10)
        >>> out = quantizer(torch.randn(4, 10, 8))
        >>> out.codes.shape, quantizer.codebook_sizes
        (torch.Size([4, 10, 2]), (1024, 1024))

    References:
        Yu et al., "Language Model Beats Diffusion – Tokenizer is Key to Visual Generation",
        ICLR 2024, section 3.1 (lookup-free). https://arxiv.org/abs/2310.05737
        Zhao et al., "Image and Video Tokenization with Binary Spherical Quantization", 2024.
        https://arxiv.org/abs/2406.07548
    """

    arguments = (
        "dim",
        "depth",
        "bits",
        "spherical",
        "temperature",
        "diversity",
        "depth_dropout",
        "channels_first",
    )

    def __init__(
        self,
        dim: int,
        depth: int,
        bits: int,
        *,
        spherical: bool = False,
        temperature: float = 0.1,
        diversity: float = 1.0,
        depth_dropout: float = 0.0,
        channels_first: bool = False,
    ) -> None:
        where = "ResidualBinaryQuantizer"
        super().__init__(
            dim,
            depth,
            [2] * check_count(where, "bits", bits),
            most_significant_first=True,
            depth_dropout=depth_dropout,
            channels_first=channels_first,
        )
        if not 0 < temperature < inf:
            raise ConfigError(f"{where}: temperature={temperature} has to be above 0 and finite.")
        if not 0 <= diversity < inf:
            raise ConfigError(f"{where}: diversity={diversity} has to be at least 0 and finite.")
        self.bits, self.spherical = bits, spherical
        self.temperature, self.diversity = temperature, diversity

    def _bounded(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=1) if self.spherical else z

    def _unit(self) -> float:
        return self.bits**-0.5 if self.spherical else 1.0

    def _digits(self, residual: Tensor, level: int) -> Tensor:  # noqa: ARG002
        # Not by rounding: what is close to 0 would lose its sign. Equation 3 of Yu et al.
        return (residual > 0).long()

    def _losses(
        self, z: Tensor, done: GridPass, in_use: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        left = torch.stack(done.left) + (z - z.detach())  # (D, N, bits)
        before = torch.cat([z[None], left[:-1]])
        share = left.new_ones(*left.shape[:2], 1) if in_use is None else in_use.T[..., None]
        vectors = share.sum(dim=1)
        uses = vectors.sum().clamp_min(1)
        commitment = (share * left.square()).sum() / (uses * self.bits)

        scales = torch.stack([self._scale(level)[:1] for level in range(len(left))])[:, None]
        logits = 4 * before / (self.temperature * scales)
        chances = torch.sigmoid(logits)
        certainty = (share * bit_entropy(logits, chances)).sum() / uses
        sums = (share * chances).sum(dim=1)
        means = sums / vectors.clamp_min(1)
        if self.training:
            means = _over_ranks(means, sums, vectors)
        eps = torch.finfo(means.dtype).eps
        means = means.clamp(eps, 1 - eps)  # the slope at 0 and 1 is infinite
        spread = (vectors * bit_entropy(torch.logit(means), means)).sum() / uses
        return commitment, certainty - self.diversity * spread


def bit_entropy(logits: Tensor, chances: Tensor) -> Tensor:
    """Return the entropy in nats of bits that are 1 with probabilities σ(logits) = chances."""
    return F.softplus(logits) - logits * chances


def _over_ranks(means: Tensor, sums: Tensor, vectors: Tensor) -> Tensor:
    """Return the means over all processes, with the gradient of this one's.

    Averaged over the processes, as DistributedDataParallel does, that is the gradient of the whole.
    """
    all_sums, all_vectors = sums.detach().clone(), vectors.clone()
    sum_over_ranks(all_sums, all_vectors)
    return all_sums / all_vectors.clamp_min(1) + (means - means.detach())
