"""What may stand between encoder and decoder: residual quantization, one level of it, a Gaussian.

The three are the lineage of the paper. "rq" is its own bottleneck. "vq" is that of VQ-VAE: a
single level whose codewords a gradient moves (the codebook loss) while a commitment loss holds the
encoder to them; it starts by k-means and revives dead entries exactly as "rq" does, which VQ-VAE
did not, so that what a comparison shows is depth and not luck in using the table
(`restart_threshold=0` turns revival off). "kl" is the VAE's, without codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count
from rqtoolkit.quantizers import ResidualQuantizer

__all__ = ["GaussianBottleneck", "GaussianOutput", "build_bottleneck"]

_LOG_VARIANCE = (-30.0, 20.0)  # beyond these the exponential of float32 says nothing more


@dataclass(frozen=True)
class GaussianOutput:
    """Result of a Gaussian bottleneck's forward.

    Attributes:
        quantized: What the decoder reads, shape (..., dim): a draw in training mode, else the mean.
        mean: Shape (..., dim).
        kl_loss: Scalar: divergence from the standard normal in nats, summed over an image and
            averaged over images, unweighted.
    """

    quantized: Tensor
    mean: Tensor
    kl_loss: Tensor


class GaussianBottleneck(nn.Module):
    """Diagonal Gaussian latents of a variational autoencoder.

    Reads twice `dim` channels, the mean first and the log-variance behind it. In training mode it
    draws by reparametrisation, in evaluation mode it passes the mean on.

    Args:
        dim: Size of a latent vector.

    References:
        Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix B and section 2.4.
        https://arxiv.org/abs/1312.6114
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = check_count("GaussianBottleneck", "dim", dim)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> GaussianOutput:
        """Draw latents, or take their mean in evaluation mode.

        Args:
            x: Mean and log-variance, shape (B, ..., 2 · dim), floating point.
            generator: Source of the draws, on the device of x; torch's default one when None.

        Returns:
            Latents in the dtype of x, their mean, and the divergence in float32.
        """
        mean, log_variance = x.float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(*_LOG_VARIANCE)
        variance = log_variance.exp()
        kl_loss = 0.5 * (mean.square() + variance - 1 - log_variance).sum() / len(x)
        latents = mean
        if self.training:
            # in an order that does not depend on how the maps lie in memory
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            latents = mean + variance.sqrt() * noise
        return GaussianOutput(latents.to(x.dtype), mean.to(x.dtype), kl_loss)


def build_bottleneck(
    kind: str,
    dim: int,
    *,
    depth: int = 1,
    codebook_size: int | Sequence[int] = 1024,
    update: Any = "ema",
    **options: Any,
) -> ResidualQuantizer | GaussianBottleneck:
    """Build the bottleneck of a kind.

    Args:
        kind: "rq", "vq" or "kl".
        dim: Size of the vectors it hands to the decoder.
        depth: Levels of codes; 1 for "vq"; "kl" has none, and this and the rest are not read.
        codebook_size: Entries of a codebook.
        update: How codebooks move under "rq"; those of "vq" always move by gradient.
        **options: Further arguments of `ResidualQuantizer`.

    Returns:
        A module on vectors (..., dim), for `imagegen.autoencoder.RQVAE`.

    Raises:
        ConfigError: If the kind is unknown, or "vq" is given more than one level.

    References:
        van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017, equation 3.
        https://arxiv.org/abs/1711.00937
    """
    if kind == "kl":
        return GaussianBottleneck(dim)
    if kind == "vq":
        if depth != 1:
            raise ConfigError(
                f"build_bottleneck: depth={depth} has no meaning for bottleneck 'vq', which has a "
                f"single level; got {depth} levels. Set quantizer.depth to 1, or choose 'rq'."
            )
        update = "gradient"
    elif kind != "rq":
        raise ConfigError(
            f"build_bottleneck: kind={kind!r} is unknown; got none of rq, vq, kl. Choose one."
        )
    return ResidualQuantizer(dim, depth, codebook_size, update=update, **options)
