"""The folded step of stage 1 against the same step written out plainly."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from imagegen.autoencoder import RQVAE
from imagegen.bottlenecks import build_bottleneck
from imagegen.discriminator import PatchDiscriminator
from imagegen.losses import AdaptiveWeight
from imagegen.stage1_step import Adversary, Stage1Step

TINY = {
    "resolution": 16,
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (8,),
    "latent_channels": 8,
    "code_dim": 4,
}
WEIGHTS = {"commitment": 0.25, "codebook": 1.0, "kl": 1e-3}


class Distance(nn.Module):
    """Stands in for LPIPS: squared differences of features of one frozen convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).requires_grad_(False)

    def forward(self, x, y):
        return (self.conv(x).relu() - self.conv(y).relu()).square().mean((1, 2, 3))


def build(kind="rq", **options):
    """Two networks in fixed states and the step around them; call again for equal ones."""
    torch.manual_seed(7)
    depth = 1 if kind == "vq" else 2
    bottleneck = build_bottleneck(kind, 4, depth=depth, codebook_size=8)
    autoencoder = RQVAE(bottleneck, **TINY)
    discriminator = PatchDiscriminator(channels=4, resolution=16)
    perceptual = Distance()
    adversary = Adversary(
        discriminator,
        AdaptiveWeight(autoencoder.decoder.conv_out),
        averages=discriminator.averages,
        **{"weight": 0.75, **options},
    )
    step = Stage1Step(
        autoencoder,
        bottleneck_weights=WEIGHTS,
        perceptual=perceptual,
        perceptual_weight=0.5,
        adversary=adversary,
    )
    return step, autoencoder, discriminator, perceptual


def plain_step(autoencoder, discriminator, perceptual, images, *, share=1.0, kind="hinge"):
    """The step as it is usually written; returns the adaptive weight."""
    output = autoencoder(images)
    nll = F.mse_loss(output.reconstruction, images)
    nll = nll + 0.5 * perceptual(output.reconstruction, images).mean()
    _, fake = discriminator(images, output.reconstruction)
    adversarial = -fake.mean() if kind == "hinge" else -torch.sigmoid(fake).log().mean()
    last = autoencoder.decoder.conv_out.weight
    (a,) = torch.autograd.grad(nll, last, retain_graph=True)
    (b,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    weight = (a.norm() / (b.norm() + 1e-4)).clamp(0, 1e4).detach()
    own = sum(WEIGHTS[name] * loss for name, loss in output.losses.items())
    (share * (nll + 0.75 * weight * adversarial + own)).backward(
        inputs=list(autoencoder.parameters())
    )
    real, fake = discriminator(images, output.reconstruction.detach())
    if kind == "hinge":
        loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    else:
        loss = -(torch.sigmoid(real).log().mean() + torch.sigmoid(-fake).log().mean()) / 2
    (share * loss).backward()
    return weight


def assert_equal_gradients(one, two):
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("bottleneck", ["rq", "vq", "kl"])
@pytest.mark.parametrize("loss", ["hinge", "non_saturating"])
def test_it_equals_the_plain_step(bottleneck, loss):
    step, *found = build(bottleneck, loss=loss)
    _, *expected = build(bottleneck, loss=loss)
    for seed in (1, 2):  # the gradients of two batches add up
        images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        torch.manual_seed(seed)
        _, figures = step(images, 0, share=0.5)
        torch.manual_seed(seed)
        weight = plain_step(*expected, images, share=0.5, kind=loss)
        assert figures()["adaptive_weight"] == pytest.approx(weight.item(), rel=1e-4)
    for one, two in zip(found, expected, strict=True):
        assert_equal_gradients(one, two)
