"""PatchGAN: its size, its patches, its norms."""

import itertools

import pytest
import torch

from imagegen.discriminator import PatchDiscriminator
from rqtoolkit.errors import ConfigError


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_its_parameters_are_those_of_the_formula(layers, image_channels):
    model = PatchDiscriminator(image_channels=image_channels, channels=8, layers=layers)
    widths = [8 * min(2**i, 8) for i in range(layers + 1)]
    first = 16 * image_channels * widths[0] + widths[0]
    middle = sum(16 * a * b + 2 * b for a, b in itertools.pairwise(widths))
    last = 16 * widths[-1] + 1
    assert sum(p.numel() for p in model.parameters()) == first + middle + last


def test_the_papers_has_663_thousand_parameters():
    # 3·64·16 + 64, 64·128·16 + 256, 128·256·16 + 512, 256·16 + 1
    model = PatchDiscriminator()
    assert sum(p.numel() for p in model.parameters()) == 3136 + 131_328 + 524_800 + 4097


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(layers, patch):
    model = PatchDiscriminator(channels=2, layers=layers, resolution=128).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits, _ = model(images, images.detach())
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == patch


def test_real_and_fake_have_norms_of_their_own():
    model = PatchDiscriminator(channels=4, resolution=32)
    real, fake = torch.randn(4, 3, 32, 32), 5 + torch.randn(4, 3, 32, 32)
    both = model(real, fake)
    again = model(real, -fake)
    torch.testing.assert_close(both[0], again[0])
    assert both[0].shape == (4, 1, 6, 6)
    whole, _ = model(torch.cat([real, fake]), fake)
    assert not torch.allclose(whole[:4], both[0], atol=1e-3)


def test_weights_start_small():
    model = PatchDiscriminator()
    convolutions = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m.weight for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(w.std().item() == pytest.approx(0.02, rel=0.05) for w in convolutions)
    assert all(w.mean().item() == pytest.approx(1.0, abs=0.01) for w in norms)


def test_images_too_small_are_refused():
    PatchDiscriminator(layers=2, resolution=12)
    with pytest.raises(ConfigError, match="needs images of 24 pixels"):
        PatchDiscriminator(layers=3, resolution=16)
