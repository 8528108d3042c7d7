"""The RQ-VAE: a convolutional encoder and decoder around an exchangeable bottleneck.

Submodules carry the names of the released checkpoints (`encoder.down.0.block.0.norm1`, ...), so
that reading one is a matter of the bottleneck alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from imagegen.convolutions import Decoder, Encoder
from rqtoolkit.errors import ConfigError, ShapeError
from rqtoolkit.io.artifact import check_tensors, constructing, read_artifact, write_artifact
from rqtoolkit.quantizers import CodeStats, ResidualQuantizer

__all__ = ["RQVAE", "RQVAEOutput", "fold_patches", "unfold_patches"]


@dataclass(frozen=True)
class RQVAEOutput:
    """What one pass through the autoencoder gives.

    Attributes:
        reconstruction: Images, shape (B, C, H, W).
        codes: Codes of the bottleneck, shape (B, h, w, depth), int64.
        commitment_loss: Pull of the encoder towards its codewords, unweighted scalar.
        codebook_loss: Pull of the codewords towards the encoder, 0 where they move by averages.
        stats: Statistics of the codes, with `usage` and `perplexity` per depth.
    """

    reconstruction: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    stats: CodeStats


def fold_patches(x: Tensor, fold: int) -> Tensor:
    """Fold fold × fold patches of a map into channels.

    Args:
        x: Feature map, shape (B, h·fold, w·fold, C).
        fold: Side of a patch.

    Returns:
        Folded map, shape (B, h, w, fold·fold·C), in the order of the paper's code.
    """
    B, H, W, C = x.shape
    x = x.reshape(B, H // fold, fold, W // fold, fold, C).transpose(2, 3)
    return x.reshape(B, H // fold, W // fold, fold * fold * C)


def unfold_patches(x: Tensor, fold: int) -> Tensor:
    """Undo `fold_patches`: (B, h, w, fold·fold·C) to (B, h·fold, w·fold, C)."""
    B, h, w, channels = x.shape
    x = x.reshape(B, h, w, fold, fold, channels // fold**2).transpose(2, 3)
    return x.reshape(B, h * fold, w * fold, channels // fold**2)


class RQVAE(nn.Module):
    """Encoder, bottleneck and decoder of Lee et al., section 3.1.

    The bottleneck is any module that works on vectors (..., dim) with dim = code_dim · fold²:
    called on them it returns `.quantized .codes .commitment_loss .codebook_loss .stats.usage`, and
    it has `encode(x) -> codes` and `decode(codes) -> x_hat`, as `ResidualQuantizer` does.

    Args:
        bottleneck: Maps encoder vectors to codes and back.
        resolution: Side of the square images, divisible by the total reduction.
        image_channels: Channels C of the images.
        channels: Width of the first level.
        multipliers: Width of each level as a multiple of `channels`, highest resolution first;
            each level but the last halves the resolution.
        blocks: Residual blocks a level in the encoder; the decoder has one more.
        attention: Resolutions at which every block is followed by attention.
        middle: Whether block, attention, block stand at the lowest resolution, as in the paper.
        latent_channels: Channels between the encoder and its 1×1 convolution.
        code_dim: Channels after it.
        fold: Side of the patches of the feature map that share one stack of codes.
        norm_groups: Groups of GroupNorm, at most; narrow networks want fewer than the paper's 32.
        dropout: Dropout inside residual blocks.

    Raises:
        ConfigError: If the sizes do not fit together.

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022,
        https://arxiv.org/abs/2203.01941, section 3.1 and appendix.
    """

    def __init__(
        self,
        bottleneck: nn.Module,
        *,
        resolution: int,
        image_channels: int = 3,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4, 4),
        blocks: int = 2,
        attention: Sequence[int] = (8,),
        middle: bool = True,
        latent_channels: int = 256,
        code_dim: int = 256,
        fold: int = 1,
        norm_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not multipliers:
            raise ConfigError("RQVAE: multipliers=[] must name a level at least. Use [1, 2].")
        reduction = 2 ** (len(multipliers) - 1) * fold
        if resolution % reduction:
            raise ConfigError(
                f"RQVAE: resolution={resolution} does not divide by the reduction {reduction} of "
                f"{len(multipliers)} levels and fold {fold}. Choose a multiple of {reduction}."
            )
        if bottleneck.dim != code_dim * fold**2:
            raise ConfigError(
                f"RQVAE: bottleneck.dim={bottleneck.dim} is not code_dim · fold²; got "
                f"{code_dim} · {fold}². Build the bottleneck with dim={code_dim * fold**2}."
            )
        convolutions: dict[str, Any] = {
            "image_channels": image_channels,
            "resolution": resolution,
            "channels": channels,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "middle": middle,
            "latent_channels": latent_channels,
            "norm_groups": norm_groups,
            "dropout": dropout,
        }
        self.arguments = {**convolutions, "code_dim": code_dim, "fold": fold}
        self.resolution, self.image_channels, self.fold = resolution, image_channels, fold
        self.grid = (resolution // reduction, resolution // reduction)
        self.encoder = Encoder(**convolutions)
        self.quant_conv = nn.Conv2d(latent_channels, code_dim, 1)
        self.quantizer: Any = bottleneck
        self.post_quant_conv = nn.Conv2d(code_dim, latent_channels, 1)
        self.decoder = Decoder(**convolutions)

    def latents(self, images: Tensor) -> Tensor:
        """Encode images up to the bottleneck.

        Args:
            images: Images in [-1, 1], shape (B, C, H, W).

        Returns:
            Vectors, shape (B, h, w, code_dim · fold²).

        Raises:
            ShapeError: If the images are not of the model's shape.
        """
        expected = (self.image_channels, self.resolution, self.resolution)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ShapeError(
                f"RQVAE: images must have shape (B, {', '.join(map(str, expected))}); got "
                f"{tuple(images.shape)}. Resize or convert them first."
            )
        features = self.quant_conv(self.encoder(images))
        return fold_patches(features.movedim(1, -1), self.fold)

    def decode_latents(self, quantized: Tensor) -> Tensor:
        """Map bottleneck vectors (B, h, w, code_dim · fold²) to images (B, C, H, W)."""
        features = unfold_patches(quantized, self.fold).movedim(-1, 1).contiguous()
        return cast(Tensor, self.decoder(self.post_quant_conv(features)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, C, H, W) in [-1, 1] as codes (B, h, w, depth), int64."""
        return cast(Tensor, self.quantizer.encode(self.latents(images)))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, h, w, d), any prefix of the depth, to images (B, C, H, W)."""
        return self.decode_latents(self.quantizer.decode(codes))

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> RQVAEOutput:
        """Reconstruct images through the bottleneck, with gradients.

        Args:
            images: Images in [-1, 1], shape (B, C, H, W).
            generator: Source of the bottleneck's draws; None takes torch's own.

        Returns:
            Reconstruction, codes and the bottleneck's losses.
        """
        out = self.quantizer(self.latents(images), generator=generator)
        return RQVAEOutput(
            reconstruction=self.decode_latents(out.quantized),
            codes=out.codes,
            commitment_loss=out.commitment_loss,
            codebook_loss=out.codebook_loss,
            stats=out.stats,
        )

    def save(self, path: str | Path) -> None:
        """Write the model, its bottleneck included, as one artifact."""
        names = signature(type(self.quantizer)).parameters  # kept as attributes of the same name
        bottleneck = {name: getattr(self.quantizer, name) for name in names}
        arguments = {**self.arguments, "bottleneck": bottleneck}
        write_artifact(path, class_name="RQVAE", arguments=arguments, tensors=self.state_dict())

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a model with a `ResidualQuantizer` as bottleneck, in eval mode.

        Raises:
            ArtifactError: If the file is not such a model or is damaged.
        """
        arguments, tensors = read_artifact(path, class_name="RQVAE", device=str(device))
        with constructing(path):
            bottleneck = ResidualQuantizer(**arguments.pop("bottleneck", {}))
            model = cls(bottleneck, **arguments)
        check_tensors(path, model.state_dict(), tensors)
        model.load_state_dict(tensors)
        return model.to(device).eval()
