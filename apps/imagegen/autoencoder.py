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

from imagegen.bottlenecks import GaussianBottleneck
from imagegen.convolutions import Decoder, Encoder
from rqtoolkit.errors import ArtifactError, ConfigError, ShapeError
from rqtoolkit.io.artifact import check_tensors, constructing, read_artifact, write_artifact
from rqtoolkit.quantizers import CodeStats, ResidualQuantizer

__all__ = ["RQVAE", "RQVAEOutput", "fold_patches", "unfold_patches"]

_BOTTLENECKS = {kind.__name__: kind for kind in (ResidualQuantizer, GaussianBottleneck)}


@dataclass(frozen=True)
class RQVAEOutput:
    """What one pass through the autoencoder gives.

    Attributes:
        reconstruction: Images, shape (B, C, H, W).
        losses: The bottleneck's own losses by name, unweighted scalars. With codes: "commitment",
            the pull of the encoder towards its codewords, and "codebook", that of the codewords
            towards the encoder (0 where they move by averages). Without: "kl".
        codes: Codes of the bottleneck, shape (B, h, w, depth), int64; None where it has none.
        stats: Statistics of the codes, with `usage` and `perplexity` per depth, or None.
    """

    reconstruction: Tensor
    losses: dict[str, Tensor]
    codes: Tensor | None
    stats: CodeStats | None


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

    The bottleneck works on vectors (..., dim) with dim = code_dim · fold²: either a quantizer with
    the methods and output of `ResidualQuantizer`, or a `GaussianBottleneck`, which makes this the
    autoencoder of a VAE, without `encode` and `decode` of codes. `quantizes` tells the two apart;
    in evaluation mode the call, `latents` and `decode_latents` work for both.

    Args:
        bottleneck: Maps encoder vectors to what the decoder reads.
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
        self.quantizes = not isinstance(bottleneck, GaussianBottleneck)
        if fold > 1 and not self.quantizes:
            raise ConfigError(
                f"RQVAE: fold={fold} lets latents share a stack of codes; got a Gaussian "
                f"bottleneck, which has no codes. Set fold to 1."
            )
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
        moments = 1 if self.quantizes else 2  # a Gaussian reads mean and log-variance
        self.quant_conv = nn.Conv2d(latent_channels, moments * code_dim, 1)
        self.quantizer: Any = bottleneck
        self.post_quant_conv = nn.Conv2d(code_dim, latent_channels, 1)
        self.decoder = Decoder(**convolutions)

    def latents(self, images: Tensor) -> Tensor:
        """Encode images up to the bottleneck: what it quantizes, or the mean of its Gaussian.

        Args:
            images: Images in [-1, 1], shape (B, C, H, W).

        Returns:
            Vectors, shape (B, h, w, code_dim · fold²).

        Raises:
            ShapeError: If the images are not of the model's shape.
        """
        return self._features(images)[..., : self.quantizer.dim]

    def _features(self, images: Tensor) -> Tensor:
        """Return what the bottleneck reads, channels last."""
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
        """Encode images (B, C, H, W) in [-1, 1] as codes (B, h, w, depth), int64.

        Raises:
            ShapeError: If the images are not of the model's shape.
            ConfigError: If the bottleneck has no codes.
        """
        self._require_codes("encode")
        return cast(Tensor, self.quantizer.encode(self.latents(images)))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, h, w, d), any prefix of the depth, to images (B, C, H, W).

        Raises:
            ConfigError: If the bottleneck has no codes.
        """
        self._require_codes("decode")
        return self.decode_latents(self.quantizer.decode(codes))

    def _require_codes(self, method: str) -> None:
        if not self.quantizes:
            raise ConfigError(
                f"RQVAE.{method}: bottleneck=kl has no codes; got the autoencoder of a VAE. Use "
                f"latents and decode_latents, or train one with autoencoder.bottleneck rq."
            )

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> RQVAEOutput:
        """Reconstruct images through the bottleneck, with gradients.

        Args:
            images: Images in [-1, 1], shape (B, C, H, W).
            generator: Source of the bottleneck's draws; None takes torch's own.

        Returns:
            Reconstruction, codes and the bottleneck's losses.
        """
        out = self.quantizer(self._features(images), generator=generator)
        if self.quantizes:
            losses = {"commitment": out.commitment_loss, "codebook": out.codebook_loss}
        else:
            losses = {"kl": out.kl_loss}
        return RQVAEOutput(
            reconstruction=self.decode_latents(out.quantized),
            losses=losses,
            codes=out.codes if self.quantizes else None,
            stats=out.stats if self.quantizes else None,
        )

    def save(self, path: str | Path) -> None:
        """Write the model, its bottleneck included, as one artifact."""
        kind = type(self.quantizer)
        names = signature(kind).parameters  # kept as attributes of the same name
        bottleneck = {name: getattr(self.quantizer, name) for name in names}
        arguments = {**self.arguments, "bottleneck": {"class": kind.__name__, **bottleneck}}
        tensors = self.state_dict()
        gathered = "quantizer.state.gathered"  # for k-means, in a training shorter than it waits
        tensors |= {gathered: tensors[gathered][:0]} if gathered in tensors else {}
        write_artifact(path, class_name="RQVAE", arguments=arguments, tensors=tensors)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a model, with the bottleneck it was saved with, in eval mode.

        Raises:
            ArtifactError: If the file is not such a model or is damaged.
        """
        arguments, tensors = read_artifact(path, class_name="RQVAE", device=str(device))
        options = dict(arguments.pop("bottleneck", {}))
        kind = options.pop("class", "ResidualQuantizer")  # the only one, when files named none
        if kind not in _BOTTLENECKS:
            raise ArtifactError(
                f"RQVAE.load: {path} has an unknown bottleneck; got {kind!r}, known are "
                f"{', '.join(_BOTTLENECKS)}. Write it again, or update rqtoolkit."
            )
        with constructing(path):
            model = cls(_BOTTLENECKS[kind](**options), **arguments)
        check_tensors(path, model.state_dict(), tensors)
        model.load_state_dict(tensors)
        return model.to(device).eval()
