"""Losses of stage 1."""

from torch import Tensor
from torch.nn import functional as F

from imagegen.autoencoder import RQVAEOutput

__all__ = ["generator_loss"]


def generator_loss(
    output: RQVAEOutput, images: Tensor, *, commitment_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of encoder, decoder and bottleneck: squared error and the bottleneck's own terms.

    Args:
        output: What the autoencoder made of the images.
        images: Images in [-1, 1], shape (B, C, H, W).
        commitment_weight: Weight of the commitment loss; the paper's is 0.25.

    Returns:
        The scalar to descend, and its parts by name, detached and unweighted.

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022,
        https://arxiv.org/abs/2203.01941, equations 4 and 5.
    """
    squared_error = F.mse_loss(output.reconstruction.float(), images)
    loss = squared_error + commitment_weight * output.commitment_loss + output.codebook_loss
    parts = {"squared_error": squared_error, "commitment": output.commitment_loss}
    return loss, {name: part.detach() for name, part in parts.items()}
