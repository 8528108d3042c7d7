"""The loss of stage 1, by hand and by the sign of its gradients."""

from types import SimpleNamespace

import pytest
import torch

from imagegen.autoencoder import RQVAE
from imagegen.losses import generator_loss
from rqtoolkit import ResidualQuantizer

WEIGHTS = {"commitment": 0.25, "codebook": 1.0}


def test_the_loss_is_the_papers_sum():
    output = SimpleNamespace(
        reconstruction=torch.tensor([[[[1.0, 0.0]]]]),
        losses={"commitment": torch.tensor(2.0), "codebook": torch.tensor(0.5)},
    )
    images = torch.tensor([[[[0.0, 2.0]]]])
    loss, parts = generator_loss(output, images, weights=WEIGHTS)
    # (1² + 2²) / 2 = 2.5, and 2.5 + 0.25 · 2 + 0.5
    assert loss.item() == 3.5
    assert {name: part.item() for name, part in parts.items()} == {
        "squared_error": 2.5,
        "commitment": 2.0,
        "codebook": 0.5,
    }


def test_descending_it_brings_pixels_and_latents_closer():
    reconstruction = torch.tensor([[[[0.8, -0.8]]]], requires_grad=True)
    images = torch.zeros(1, 1, 1, 2)
    output = SimpleNamespace(reconstruction=reconstruction, losses={})
    generator_loss(output, images, weights=WEIGHTS)[0].backward()
    assert reconstruction.grad.sign().flatten().tolist() == [1.0, -1.0]


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
    losses = []
    for _ in range(100):
        loss, _ = generator_loss(model(images), images, weights=WEIGHTS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
