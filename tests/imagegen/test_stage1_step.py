"""The folded step of stage 1 against the same step written out plainly."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from imagegen.autoencoder import RQVAE
from imagegen.bottlenecks import build_bottleneck
from imagegen.convolutions import set_checkpointing
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


def plain_step(
    autoencoder, discriminator, perceptual, images, *, share=1.0, kind="hinge", weight=None
):
    """The step as it is usually written; returns the adaptive weight."""
    output = autoencoder(images)
    nll = F.mse_loss(output.reconstruction, images)
    nll = nll + 0.5 * perceptual(output.reconstruction, images).mean()
    _, fake = discriminator(images, output.reconstruction)
    adversarial = -fake.mean() if kind == "hinge" else -torch.sigmoid(fake).log().mean()
    last = autoencoder.decoder.conv_out.weight
    (a,) = torch.autograd.grad(nll, last, retain_graph=True)
    (b,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    if weight is None:
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


BATCH = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1


def parts_of(batch):
    """Two halves of a batch, one for each process, each in two parts."""
    return [half.chunk(2) for half in batch.chunk(2)]


@pytest.mark.slow
def test_two_processes_reduce_every_gradient_once(tmp_path):
    """The reference is written for one process: both halves, one weight, the mean of gradients."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).with_name("stage1_script.py")
    subprocess.run([*launch, script, tmp_path], check=True, capture_output=True, timeout=200)
    zero, one = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    for name, gradient in zero.items():
        assert torch.equal(gradient, one[name]), name

    _, autoencoder, discriminator, perceptual = build()
    autoencoder.quantizer.freeze()
    halves = parts_of(BATCH)
    last = autoencoder.decoder.conv_out.weight
    for images in zip(*halves, strict=True):  # what the two processes hold at the same time
        slopes = []
        for part in images:
            output = autoencoder(part).reconstruction
            nll = F.mse_loss(output, part) + 0.5 * perceptual(output, part).mean()
            adversarial = -discriminator(part, output)[1].mean()
            slopes.append(
                [torch.autograd.grad(x, last, retain_graph=True)[0] for x in (nll, adversarial)]
            )
        a, b = (sum(pair) / 2 for pair in zip(*slopes, strict=True))
        weight = a.norm() / (b.norm() + 1e-4)
        for part in images:
            plain_step(autoencoder, discriminator, perceptual, part, share=0.25, weight=weight)
    assert zero.pop("weight").item() == pytest.approx(weight.item(), rel=1e-4)
    models = {"autoencoder": autoencoder, "discriminator": discriminator}
    for name, gradient in zero.items():
        model, key = name.split(".", 1)
        expected = models[model].get_parameter(key).grad
        torch.testing.assert_close(gradient, expected, rtol=5e-4, atol=1e-6)


def test_the_adversary_starts_and_grows():
    step, autoencoder, discriminator, _ = build(start=2, ramp=2)
    assert [step.adversary.strength(n) for n in range(6)] == [0, 0, 0.5, 1, 1, 1]
    _, before = step(BATCH, 1)
    assert "adversarial" not in before()
    assert all(p.grad is None for p in discriminator.parameters())
    grown = []
    for number in (2, 3):
        step, autoencoder, discriminator, _ = build(start=2, ramp=2)
        autoencoder.quantizer.freeze()
        loss, figures = step(BATCH, number)
        found = figures()
        plain = found["squared_error"] + 0.5 * found["perceptual"] + 0.25 * found["commitment"]
        grown.append((loss.item() - plain) / (found["adaptive_weight"] * found["adversarial"]))
        assert all(p.grad is not None for p in discriminator.parameters())
    assert grown == pytest.approx([0.375, 0.75], rel=1e-3)


def test_r1_is_lazy_and_pulls_on_the_discriminator_alone():
    gradients = []
    for options, number in (({}, 0), ({"penalty": "r1"}, 1), ({"penalty": "r1"}, 2)):
        step, autoencoder, discriminator, _ = build(penalty_weight=3.0, penalty_every=2, **options)
        autoencoder.quantizer.freeze()
        _, figures = step(BATCH, number)
        assert ("r1" in figures()) == (number == 2)
        gradients.append(
            [torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None])
             for m in (autoencoder, discriminator)]
        )  # fmt: skip
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert not torch.allclose(gradients[0][1], gradients[2][1], rtol=1e-2)
    torch.testing.assert_close(gradients[0][0], gradients[2][0])
    # the penalty's own gradient, weight times how rarely it comes
    _, _, discriminator, _ = build()
    images = BATCH.clone().requires_grad_()
    slope = torch.autograd.grad(
        discriminator(images, BATCH)[0].mean((1, 2, 3)).sum(), images, create_graph=True
    )[0]
    penalty = 3.0 * 2 * slope.square().sum((1, 2, 3)).mean() / 2
    parameters = list(discriminator.parameters())
    own = torch.autograd.grad(penalty, parameters, materialize_grads=True)
    own = torch.cat([gradient.flatten() for gradient in own])
    torch.testing.assert_close(gradients[2][1] - gradients[0][1], own, rtol=1e-3, atol=1e-5)


def test_lecam_follows_the_logits_and_is_kept_with_the_discriminator():
    step, _, discriminator, _ = build(penalty="lecam", penalty_weight=1.0)
    _, figures = step(BATCH, 0)
    found = figures()
    expected = [0.01 * found["logits_real"], 0.01 * found["logits_fake"]]
    assert discriminator.averages.tolist() == pytest.approx(expected, rel=1e-4)
    assert found["lecam"] > 0
    assert torch.equal(discriminator.state_dict()["averages"], discriminator.averages)


def test_augmentation_is_seen_by_the_discriminator_alone():
    step, *_ = build(augment=("color", "translation", "cutout"))
    other, *_ = build()
    torch.manual_seed(0)
    found = step(BATCH, 0)[1]()
    torch.manual_seed(0)
    plain = other(BATCH, 0)[1]()
    assert found["squared_error"] == plain["squared_error"]
    assert found["logits_real"] != plain["logits_real"]


@pytest.mark.parametrize("what", ["channels_last", "checkpointing", "bfloat16"])
def test_other_ways_to_compute_give_the_same_step(what):
    found, *_ = build("kl")  # codes would jump with the rounding
    step, autoencoder, discriminator, perceptual = build("kl")
    images, tolerance = BATCH, 1e-4
    if what == "channels_last":
        for module in (autoencoder, discriminator, perceptual):
            module.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    elif what == "checkpointing":
        set_checkpointing(autoencoder, True)
    else:
        step.dtype = step.adversary.dtype = torch.bfloat16
        tolerance = 0.2
    results = []
    for one, batch in ((found, BATCH), (step, images)):
        torch.manual_seed(0)
        loss, _ = one(batch, 0)
        slopes = [p.grad.flatten() for p in one.autoencoder.parameters() if p.grad is not None]
        slopes += [p.grad.flatten() for p in one.adversary.discriminator.parameters()]
        results.append((loss, torch.cat(slopes)))
    (loss, slope), (other_loss, other_slope) = results
    assert other_loss.item() == pytest.approx(loss.item(), rel=tolerance)
    assert (slope - other_slope).norm() < tolerance * slope.norm()
    assert other_slope.dtype == torch.float32


def test_checkpointing_keeps_less():
    kept = []
    for wanted in (False, True):
        _, autoencoder, _, _ = build()
        set_checkpointing(autoencoder, wanted)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            autoencoder(BATCH)
        kept.append(sum(sizes))
    assert kept[1] < 0.6 * kept[0]
