"""Losses of stage 1."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from imagegen.autoencoder import RQVAEOutput

__all__ = ["generator_loss"]


def generator_loss(
    output: RQVAEOutput, images: Tensor, *, weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of encoder, decoder and bottleneck: squared error and the bottleneck's own terms.

    Args:
        output: What the autoencoder made of the images.
        images: Images in [-1, 1], shape (B, C, H, W).
        weights: Weight of each of the bottleneck's losses; the paper has commitment 0.25.

    Returns:
        The scalar to descend, and its parts by name, detached and unweighted.

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022,
        https://arxiv.org/abs/2203.01941, equations 4 and 5.
    """
    squared_error = F.mse_loss(output.reconstruction.float(), images)
    loss = squared_error
    for name, part in output.losses.items():
        loss = loss + weights[name] * part
    parts = {"squared_error": squared_error, **output.losses}
    return loss, {name: part.detach() for name, part in parts.items()}
