"""Losses of stage 1: what the autoencoder descends, what the discriminator descends."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

__all__ = [
    "AdaptiveWeight",
    "adversarial_loss",
    "bottleneck_loss",
    "discriminator_loss",
    "lecam_penalty",
    "r1_penalty",
]

_LARGEST_WEIGHT = 1e4
_EPSILON = 1e-4


def bottleneck_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of a bottleneck's losses.

    Args:
        losses: Scalars by name, as in `RQVAEOutput.losses`.
        weights: Weight of each; the paper has commitment 0.25.

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022,
        https://arxiv.org/abs/2203.01941, equations 4 and 5.
    """
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def adversarial_loss(fake: Tensor, kind: str) -> Tensor:
    """Return what the generator descends so that its images are taken for real ones.

    Args:
        fake: Logits of generated images, any shape.
        kind: "hinge" for their negative mean, "non_saturating" for -log sigmoid.

    Returns:
        Scalar.

    References:
        Lim & Ye, "Geometric GAN", 2017, https://arxiv.org/abs/1705.02894.
        Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, section 3,
        https://arxiv.org/abs/1406.2661.
    """
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Return what the discriminator descends: the mean of its losses on real and generated images.

    Args:
        real: Logits of real images, any shape.
        fake: Logits of generated images, any shape.
        kind: "hinge" or "non_saturating", as of `adversarial_loss`.

    Returns:
        Scalar.
    """
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return half the squared gradient of an image's mean logit, summed over its pixels.

    Args:
        logits: Logits of real images, shape (B, 1, H', W'), of a graph that can be differentiated.
        images: Those images, shape (B, C, H, W), with `requires_grad`.

    Returns:
        Scalar, the mean over images.

    References:
        Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018,
        https://arxiv.org/abs/1801.04406, equation 9.
    """
    total = logits.mean((1, 2, 3)).sum()
    (slope,) = torch.autograd.grad(total, images, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean() / 2


def lecam_penalty(real: Tensor, fake: Tensor, averages: Tensor) -> Tensor:
    """Return how far logits have crossed the moving mean of the other kind of images.

    Args:
        real: Logits of real images, any shape.
        fake: Logits of generated images, any shape.
        averages: Moving means of real and of fake logits, shape (2,).

    Returns:
        Scalar.

    References:
        Tseng et al., "Regularizing Generative Adversarial Networks under Limited Data", CVPR 2021,
        https://arxiv.org/abs/2104.03310, equation 4, rectified as in its authors' code.
    """
    above, below = F.relu(real - averages[1]), F.relu(averages[0] - fake)
    return above.square().mean() + below.square().mean()


class AdaptiveWeight:
    """Weight of the adversarial loss that makes its gradient as large as that of the other losses.

    w = ‖∇(reconstruction)‖ / (‖∇(adversarial)‖ + 1e-4), at most 1e4, where ∇ is taken with respect
    to the weight of the last convolution. That gradient follows from the input of the convolution
    and the loss's gradient with respect to its output, the image; both are there anyway, so that
    no pass through decoder, discriminator or features is made for it.

    Args:
        last: The decoder's last convolution; its input is remembered at each forward.
        average: Averages a tensor over processes, so that all of them have one weight.

    References:
        Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021,
        https://arxiv.org/abs/2012.09841, equation 7.
    """

    def __init__(
        self, last: nn.Conv2d, *, average: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.last, self.average = last, average
        self.input: Tensor | None = None
        last.register_forward_pre_hook(self._remember)

    def _remember(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG002
        self.input = inputs[0].detach()

    @torch.no_grad()
    def __call__(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """Return the weight, a scalar.

        Args:
            reconstruction: Gradient of the reconstruction losses with respect to the image that
                the last forward gave, shape (B, C, H, W).
            adversarial: Gradient of the adversarial loss, same shape.
        """
        assert self.input is not None, "the decoder has to run first"
        both = torch.cat([reconstruction, adversarial], dim=1).to(self.input.dtype)
        outputs, inputs, *kernel = self.last.weight.shape
        slopes = conv2d_weight(
            self.input, (2 * outputs, inputs, *kernel), both, padding=self.last.padding
        ).float()
        if self.average is not None:
            slopes = self.average(slopes)
        above, below = (part.norm() for part in slopes.split(outputs))
        self.input = None
        return (above / (below + _EPSILON)).clamp(max=_LARGEST_WEIGHT)
