"""The losses of stage 1 by hand, by other formulas, and by the sign of their gradients."""

import math

import pytest
import torch
from torch import nn

from imagegen.autoencoder import RQVAE
from imagegen.losses import (
    AdaptiveWeight,
    adversarial_loss,
    bottleneck_loss,
    discriminator_loss,
    lecam_penalty,
    r1_penalty,
)
from imagegen.stage1_step import Stage1Step
from rqtoolkit import ResidualQuantizer

WEIGHTS = {"commitment": 0.25, "codebook": 1.0}


def test_the_bottlenecks_losses_are_weighted():
    losses = {"commitment": torch.tensor(2.0), "codebook": torch.tensor(0.5)}
    assert bottleneck_loss(losses, WEIGHTS).item() == 1.0


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert adversarial_loss(fake, "hinge").item() == pytest.approx(1 / 3)
    # real: 0, 0.5, 2; fake: 0, 1, 2
    expected = (2.5 / 3 + 3 / 3) / 2
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(expected)


def test_non_saturating_by_hand():
    def loss(p):
        return -math.log(p)

    real, fake = torch.tensor([math.log(3.0)]), torch.tensor([math.log(1 / 4)])
    # the discriminator takes the real image for real with 3/4, the fake one with 1/5
    assert adversarial_loss(fake, "non_saturating").item() == pytest.approx(loss(1 / 5))
    found = discriminator_loss(real, fake, "non_saturating").item()
    assert found == pytest.approx((loss(3 / 4) + loss(4 / 5)) / 2)


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_the_two_sides_pull_apart(kind):
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    discriminator_loss(real, fake, kind).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    fake.grad = None
    adversarial_loss(fake, kind).backward()
    assert (fake.grad < 0).all()


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    weight = torch.randn(3, 4, 4)
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    logits = (images * weight).sum((1, 2, 3))[:, None, None, None].expand(5, 1, 2, 3)
    torch.testing.assert_close(r1_penalty(logits, images), weight.square().sum() / 2)


def test_r1_can_be_descended():
    layer = nn.Conv2d(1, 1, 3)
    images = torch.randn(2, 1, 5, 5, requires_grad=True)
    before = r1_penalty(layer(images), images)
    before.backward()
    with torch.no_grad():
        layer.weight -= 0.1 * layer.weight.grad
    assert r1_penalty(layer(images), images) < before


def test_lecam_by_hand():
    averages = torch.tensor([1.0, -1.0])  # of real and fake logits
    real, fake = torch.tensor([1.0, -3.0]), torch.tensor([0.0, 2.0])
    # real logits over the fakes' mean: 2, 0; fake ones under the reals' mean: 1, 0
    assert lecam_penalty(real, fake, averages).item() == pytest.approx(4 / 2 + 1 / 2)


@pytest.mark.parametrize("image_channels", [1, 3])
def test_the_adaptive_weight_is_that_of_autograd(image_channels):
    layer = nn.Conv2d(6, image_channels, 3, padding=1)
    weight = AdaptiveWeight(layer)
    images = layer(torch.randn(4, 6, 10, 7))
    one, two = images.square().sum(), (3 * images).sin().sum()
    slopes = [torch.autograd.grad(loss, images, retain_graph=True)[0] for loss in (one, two)]
    a, b = (torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in (one, two))
    expected = a.norm() / (b.norm() + 1e-4)
    torch.testing.assert_close(weight(*slopes), expected)
    layer(torch.randn(4, 6, 10, 7))
    assert weight(slopes[0], torch.zeros_like(slopes[1])).item() == 1e4


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_few_steps_lower_it(update):
    quantizer = ResidualQuantizer(4, 2, 8, update=update)
    model = RQVAE(
        quantizer,
        resolution=8,
        image_channels=1,
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        middle=False,
        latent_channels=8,
        code_dim=4,
        norm_groups=2,
    )
    # four images, eight times over: a code could hardly be simpler
    images = (
        torch.nn.functional.interpolate(torch.randn(4, 1, 2, 2), size=8).tanh().repeat(8, 1, 1, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    step = Stage1Step(model, bottleneck_weights=WEIGHTS)
    losses = []
    for number in range(100):
        optimizer.zero_grad()
        loss, figures = step(images, number)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    found = figures()
    parts = found["squared_error"] + 0.25 * found["commitment"] + found["codebook"]
    assert losses[-1] == pytest.approx(parts, rel=1e-5)
