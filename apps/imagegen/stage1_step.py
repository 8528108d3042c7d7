"""Forward and backward of one batch of stage 1, each network passed through as rarely as can be.

The reconstruction is cut from the decoder's graph. Reconstruction and adversarial losses are
differentiated down to it once each, which is all that the adaptive weight needs; their weighted sum
then goes through the decoder in a single backward pass. The discriminator's logits of the
reconstruction serve both sides, since its weights do not move in between.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imagegen.augment import draw_augmentation
from imagegen.losses import (
    AdaptiveWeight,
    adversarial_loss,
    bottleneck_loss,
    discriminator_loss,
    lecam_penalty,
    r1_penalty,
)
from imagegen.perceptual import Perceptual

__all__ = ["Adversary", "Stage1Step"]

_LECAM_DECAY = 0.99


class Adversary:
    """The discriminator's part of a step: its own loss, and its pull on the reconstruction.

    Args:
        discriminator: Gives logits of real and of generated images, as `PatchDiscriminator`, or
            that spread over processes.
        adaptive_weight: Balances adversarial against reconstruction loss.
        averages: Moving means of the logits, a buffer of the discriminator; LeCam moves them.
        weight: Of the adversarial loss, times the adaptive weight; the paper's is 0.75.
        loss: "hinge" or "non_saturating".
        start: Step the adversarial training begins at.
        ramp: Steps over which the adversarial loss grows to its weight.
        penalty: "none", "r1" or "lecam", on the discriminator.
        penalty_weight: Weight of the penalty.
        penalty_every: R1 is applied to one step in so many, at so many times its weight.
        augment: Policies of `draw_augmentation`.
        average: Averages a tensor over processes.
        dtype: Precision of the discriminator's convolutions.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        adaptive_weight: AdaptiveWeight,
        *,
        averages: Tensor,
        weight: float = 0.75,
        loss: str = "hinge",
        start: int = 0,
        ramp: int = 0,
        penalty: str = "none",
        penalty_weight: float = 0.0,
        penalty_every: int = 1,
        augment: Sequence[str] = (),
        average: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.discriminator, self.adaptive_weight = discriminator, adaptive_weight
        self.averages, self.average = averages, average
        self.weight, self.loss, self.start, self.ramp = weight, loss, start, ramp
        self.penalty, self.penalty_weight = penalty, penalty_weight
        self.penalty_every, self.augment, self.dtype = penalty_every, augment, dtype

    def strength(self, step: int) -> float:
        """Return the share of its weight that the adversarial loss has at a step: 0 to 1."""
        if step < self.start:
            return 0.0
        return min(1.0, (step - self.start + 1) / max(1, self.ramp))

    def pull(
        self, fake: Tensor, real: Tensor, reconstruction: Tensor, step: int, *, share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Train the discriminator on a batch; return the adversarial gradient of the images.

        Args:
            fake: Reconstructions with `requires_grad`, shape (B, C, H, W), float32.
            real: The images they are of.
            reconstruction: Gradient of the reconstruction losses with respect to `fake`.
            step: Number of the step, `start` or later.
            share: Multiplies the gradients that are left in the discriminator.

        Returns:
            Gradient of the weighted adversarial loss with respect to `fake`, and figures.
        """
        with_r1 = self.penalty == "r1" and step % self.penalty_every == 0
        augmentation = draw_augmentation(self.augment, real.shape, device=real.device)
        shown = augmentation(real).detach().requires_grad_(with_r1)
        with torch.autocast(real.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits_real, logits_fake = self.discriminator(shown, augmentation(fake))
        adversarial = adversarial_loss(logits_fake, self.loss)
        (pull,) = torch.autograd.grad(adversarial, fake, retain_graph=True)
        weight = self.adaptive_weight(reconstruction, pull)
        loss = discriminator_loss(logits_real, logits_fake, self.loss)
        figures = {
            "adversarial": adversarial,
            "adaptive_weight": weight,
            "discriminator": loss,
            "logits_real": logits_real.mean(),
            "logits_fake": logits_fake.mean(),
        }
        if with_r1:
            figures["r1"] = r1_penalty(logits_real, shown)
            loss = loss + self.penalty_weight * self.penalty_every * figures["r1"]
        elif self.penalty == "lecam":
            self._follow(figures)
            figures["lecam"] = lecam_penalty(logits_real, logits_fake, self.averages)
            loss = loss + self.penalty_weight * figures["lecam"]
        (share * loss).backward()
        return self.weight * self.strength(step) * weight * pull, figures

    @torch.no_grad()
    def _follow(self, figures: Mapping[str, Tensor]) -> None:
        """Move the moving means of the logits towards those of this batch, over all processes."""
        means = torch.stack([figures["logits_real"], figures["logits_fake"]]).detach()
        self.averages.lerp_(self.average(means), 1 - _LECAM_DECAY)


class Stage1Step:
    """Forward and backward of the autoencoder, and of the discriminator where there is one.

    Args:
        autoencoder: An `RQVAE`, or that spread over processes.
        bottleneck_weights: Weight of each of the bottleneck's losses.
        perceptual: LPIPS; None leaves it out.
        perceptual_weight: Its weight; the paper's is 1.
        adversary: The discriminator's part; None leaves it out.
        dtype: Precision of the autoencoder's convolutions, float32 or bfloat16.

    References:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022,
        https://arxiv.org/abs/2203.01941, section 3.1.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        *,
        bottleneck_weights: Mapping[str, float],
        perceptual: Perceptual | None = None,
        perceptual_weight: float = 1.0,
        adversary: Adversary | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.autoencoder, self.bottleneck_weights = autoencoder, bottleneck_weights
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.adversary, self.dtype = adversary, dtype

    def __call__(
        self, images: Tensor, step: int, *, share: float = 1.0
    ) -> tuple[Tensor, Callable[[], dict[str, Any]]]:
        """Leave `share` times the gradients of both networks' losses in their parameters.

        Args:
            images: Images in [-1, 1], shape (B, C, H, W), float32.
            step: Number of the step, from 0.
            share: 1 over the number of batches whose gradients make a step.

        Returns:
            The autoencoder's loss, a detached scalar, and what gives the figures to log.
        """
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.autoencoder(images)
        fake = output.reconstruction.detach().float().requires_grad_()
        figures = {"squared_error": F.mse_loss(fake, images)}
        loss = figures["squared_error"]
        if self.perceptual is not None:
            figures["perceptual"] = self.perceptual(fake, images).mean()
            loss = loss + self.perceptual_weight * figures["perceptual"]
        (gradient,) = torch.autograd.grad(loss, fake)
        if self.adversary is not None and self.adversary.strength(step):
            pull, more = self.adversary.pull(fake, images, gradient, step, share=share)
            factor = self.adversary.weight * self.adversary.strength(step)
            loss = loss + factor * more["adaptive_weight"] * more["adversarial"]
            gradient, figures = gradient + pull, figures | more
        own = bottleneck_loss(output.losses, self.bottleneck_weights)
        gradient = (share * gradient).to(output.reconstruction.dtype)
        torch.autograd.backward([output.reconstruction, share * own], [gradient, None])
        figures = {name: value.detach() for name, value in (figures | output.losses).items()}

        def read() -> dict[str, Any]:
            plain: dict[str, Any] = {name: value.item() for name, value in figures.items()}
            if output.stats is None:
                return plain
            return {**plain, "usage": output.stats.usage, "perplexity": output.stats.perplexity}

        return (loss + own).detach(), read
