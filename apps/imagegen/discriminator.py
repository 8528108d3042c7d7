"""PatchGAN: a discriminator that judges every patch of an image by itself."""

from typing import cast

import torch
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError

__all__ = ["PatchDiscriminator"]


class PatchDiscriminator(nn.Module):
    """Convolutions with batch normalisation that end in a map of logits, high for real images.

    A 4×4 convolution with stride 2 for each of `layers`, doubling the channels, then one of stride
    1 that doubles them once more (eight times the first at most) and one that gives the logits.

    Args:
        image_channels: Channels C of the images.
        channels: Channels after the first convolution.
        layers: Convolutions with stride 2; 3 has patches of 70×70 pixels, the paper's 2 of 34×34.
        resolution: Side of the images, to refuse those too small.

    Attributes:
        averages: Moving means of real and of generated logits, shape (2,), which LeCam reads.

    Raises:
        ConfigError: If the images are too small for so many layers.

    References:
        Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR
        2017, https://arxiv.org/abs/1611.07004, section 3.2.2 and appendix 6.1.2.
        Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021,
        https://arxiv.org/abs/2012.09841, section 3.1.
    """

    averages: Tensor

    def __init__(
        self, *, image_channels: int = 3, channels: int = 64, layers: int = 2, resolution: int = 256
    ) -> None:
        super().__init__()
        if resolution // 2**layers < 3:
            raise ConfigError(
                f"PatchDiscriminator: layers={layers} needs images of {3 * 2**layers} pixels at "
                f"least; got {resolution}. Choose fewer layers."
            )
        width = channels
        modules: list[nn.Module] = [nn.Conv2d(image_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for number in range(1, layers + 1):
            outputs = channels * min(2**number, 8)
            stride = 2 if number < layers else 1
            modules += [
                nn.Conv2d(width, outputs, 4, stride, 1, bias=False),  # the norm has one
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.2),
            ]
            width = outputs
        self.patches = nn.Sequential(*modules, nn.Conv2d(width, 1, 4, 1, 1))
        self.patches.apply(_start)
        self.register_buffer("averages", torch.zeros(2))  # of real and fake logits, for LeCam

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Judge real and generated images, each batch normalised by its own statistics.

        Both come in one call because distributed training wants one forward per backward.

        Args:
            real: Images in [-1, 1], shape (B, C, H, W).
            fake: Images of the same shape.

        Returns:
            Logits of both, shape (B, 1, H', W') each, float32.
        """
        return self._logits(real), self._logits(fake)

    def _logits(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.patches(images)).float()


def _start(module: nn.Module) -> None:
    """Draw weights as pix2pix does: N(0, 0.02), the scales of norms N(1, 0.02), biases 0."""
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
