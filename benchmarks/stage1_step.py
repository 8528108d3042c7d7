"""What does a step of stage 1 cost, beside the same step written in the obvious way?

    python -m benchmarks.stage1_step

One step is forward and backward of autoencoder (encoder, residual quantizer, decoder), LPIPS and
PatchGAN with the adaptive weight, and both optimizers. The plain step differentiates both losses at
the decoder's last weight before its backward pass, judges the reconstruction a second time for the
discriminator, and runs in float32 on channels-first tensors. Weights are random: they do not change
what a step costs. Both steps are first checked to give the same losses and gradients; then all
variants are timed in turn, and the ratio of medians is printed. On a machine shared with others
the processor seconds say more.
"""

import copy
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from imagegen.autoencoder import RQVAE
from imagegen.discriminator import PatchDiscriminator
from imagegen.losses import AdaptiveWeight
from imagegen.perceptual import Perceptual
from imagegen.stage1_step import Adversary, Stage1Step
from rqtoolkit import ResidualQuantizer

RESULTS = Path("benchmarks/results/stage1_step.json")
WEIGHTS = {"commitment": 0.25, "codebook": 1.0}
# Training runs the second in float32, on a CPU the last in bfloat16, on a GPU the last but one.
ALL, FEATURES = ("autoencoder", "discriminator", "perceptual"), ("discriminator", "perceptual")
VARIANTS: dict[str, dict[str, Any]] = {
    "folded": {},
    "folded, channels last": {"channels_last": ALL},
    "folded, bfloat16": {"dtype": torch.bfloat16},
    "folded, bfloat16, channels last": {"channels_last": ALL, "dtype": torch.bfloat16},
    "folded, bfloat16, channels last but for the autoencoder": {
        "channels_last": FEATURES,
        "dtype": torch.bfloat16,
    },
}


class Networks(nn.Module):
    """All that a step needs, with random weights."""

    def __init__(self, resolution: int, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.autoencoder = RQVAE(
            ResidualQuantizer(64, 4, 512, shared_codebook=True),
            resolution=resolution,
            channels=channels,
            multipliers=(1, 2, 2),
            attention=(resolution // 4,),
            latent_channels=64,
            code_dim=64,
        )
        self.discriminator = PatchDiscriminator(resolution=resolution)
        self.perceptual = random_perceptual()


def random_perceptual() -> Perceptual:
    """LPIPS with random weights in the shapes of its public files."""
    vgg, width, number = {}, 3, 0
    for stage in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for outputs in stage:
            vgg[f"features.{number}.weight"] = torch.randn(outputs, width, 3, 3) / (3 * width**0.5)
            vgg[f"features.{number}.bias"] = torch.zeros(outputs)
            width, number = outputs, number + 2
        number += 1
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate(widths)}
    return Perceptual(vgg, heads)


def plain_step(networks: Networks, images: Tensor) -> dict[str, Tensor]:
    """The step in the obvious way; leaves gradients and returns the losses."""
    autoencoder, discriminator = networks.autoencoder, networks.discriminator.patches
    output = autoencoder(images)
    fake = output.reconstruction
    reconstruction = F.mse_loss(fake, images) + plain_lpips(networks.perceptual, fake, images)
    adversarial = -discriminator(fake).mean()
    last = autoencoder.decoder.conv_out.weight
    (one,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (two,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    weight = (one.norm() / (two.norm() + 1e-4)).clamp(0, 1e4).detach()
    loss = reconstruction + 0.75 * weight * adversarial
    loss = loss + sum(WEIGHTS[name] * part for name, part in output.losses.items())
    loss.backward()
    for parameter in discriminator.parameters():
        parameter.grad = None  # the generator's loss is not the discriminator's
    real, fake = discriminator(images), discriminator(fake.detach())
    judged = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    judged.backward()
    return {"loss": loss.detach(), "discriminator": judged.detach(), "adaptive_weight": weight}


def plain_lpips(perceptual: Perceptual, x: Tensor, y: Tensor) -> Tensor:
    """LPIPS as its authors' code goes: features of both, norms, differences, heads."""
    total = torch.zeros(())
    layers = []
    for images in (x, y):
        h, taps = (images - perceptual.shift) / perceptual.scale, []
        for index, layer in enumerate(perceptual.features):
            h = layer(h)
            if index in perceptual.taps:
                taps.append(h)
        layers.append(taps)
    for number, (a, b) in enumerate(zip(*layers, strict=True)):
        a, b = (h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10) for h in (a, b))
        head = perceptual.get_buffer(f"head{number}")[None, :, None, None]
        total = total + F.conv2d((a - b).square(), head).mean()
    return total


def build_step(
    networks: Networks, *, channels_last: Sequence[str] = (), dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], dict[str, Any]]:
    """Put our step around networks, which are converted in place."""
    for name in channels_last:
        networks.get_submodule(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layout = torch.channels_last if "autoencoder" in channels_last else torch.contiguous_format
    networks.perceptual.features.to(dtype)
    adversary = Adversary(
        networks.discriminator,
        AdaptiveWeight(networks.autoencoder.decoder.conv_out),
        averages=networks.discriminator.averages,
        dtype=dtype,
    )
    step = Stage1Step(
        networks.autoencoder,
        bottleneck_weights=WEIGHTS,
        perceptual=networks.perceptual,
        adversary=adversary,
        dtype=dtype,
    )

    def run(images: Tensor) -> dict[str, Any]:
        loss, figures = step(images.contiguous(memory_format=layout), 0)
        return {"loss": loss, "figures": figures}

    return run


def with_optimizers(networks: Networks, step: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """Return a whole step: gradients, and a move of both networks."""
    parts = (networks.autoencoder, networks.discriminator)
    optimizers = [torch.optim.Adam(m.parameters(), 4e-5, (0.5, 0.9)) for m in parts]

    def run(images: Tensor) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        step(images)
        for optimizer in optimizers:
            optimizer.step()

    return run


def largest_differences(networks: Networks, images: Tensor) -> dict[str, float]:
    """Return how far our step is from the plain one, both in float32 and channels first.

    Losses are compared relative to themselves, gradients to the largest of their network (the bias
    of an attention's keys has none but rounding).

    Raises:
        AssertionError: If a loss or gradient differs by more than rounding.
    """
    one, two = copy.deepcopy(networks), copy.deepcopy(networks)
    step = build_step(two)
    torch.manual_seed(1)  # codebooks that have not seen enough yet draw
    expected = plain_step(one, images)
    torch.manual_seed(1)
    found = step(images)
    figures = found["figures"]()
    found_losses = {"loss": found["loss"].item(), **{k: figures[k] for k in list(expected)[1:]}}
    differences = {
        name: abs(found_losses[name] - value.item()) / abs(value.item())
        for name, value in expected.items()
    }
    for name in ("autoencoder", "discriminator"):
        pairs = zip(
            one.get_submodule(name).parameters(), two.get_submodule(name).parameters(), strict=True
        )
        gradients = [(p.grad, q.grad) for p, q in pairs]
        assert all(a is not None and b is not None for a, b in gradients), name
        error = max((a - b).abs().max().item() for a, b in gradients)
        largest = max(a.abs().max().item() for a, _ in gradients)
        differences[f"{name} gradient"] = error / largest
    assert all(value < 1e-4 for value in differences.values()), differences
    return differences


def cpu_name() -> str:
    """Return what the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    bf16 = " with avx512_bf16" * ("avx512_bf16" in flags)
    return f"{names[0] if names else platform.processor()}{bf16}"


def main(
    resolution: int = 64,
    channels: int = 64,
    batch_size: int = 4,
    rounds: int = 9,
    threads: int = 1,
    device: str = "cpu",
    out: Annotated[Path, typer.Option(help="JSON to write.")] = RESULTS,
) -> None:
    """Time the variants."""
    torch.set_num_threads(threads)
    images = torch.rand(batch_size, 3, resolution, resolution, device=device) * 2 - 1
    networks = Networks(resolution, channels).to(device)
    networks.autoencoder(torch.cat([images] * 2))  # start the codebooks before they are copied
    differences = largest_differences(networks, images)
    plain = copy.deepcopy(networks)
    steps = {"plain": with_optimizers(plain, lambda x: plain_step(plain, x))}
    for name, options in VARIANTS.items():
        own = copy.deepcopy(networks)
        steps[name] = with_optimizers(own, build_step(own, **options))
    clocks = {"seconds": perf_counter}
    if device == "cpu":
        clocks["processor_seconds"] = process_time
    times: dict[str, dict[str, list[float]]] = {c: {name: [] for name in steps} for c in clocks}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            begun = {clock: read() for clock, read in clocks.items()}
            step(images)
            if device != "cpu":
                torch.accelerator.synchronize()
            if turn:  # the first warms up
                for clock, read in clocks.items():
                    times[clock][name].append(read() - begun[clock])
    medians = {c: {n: statistics.median(t) for n, t in times[c].items()} for c in clocks}
    ratios = {c: {n: m / medians[c]["plain"] for n, m in medians[c].items()} for c in clocks}
    table = Table(
        "step", title=f"step of stage 1, {batch_size} images of {resolution}x{resolution}"
    )
    for clock in clocks:
        table.add_column(f"median {clock}".replace("_", " "))
        table.add_column("ratio")
    for name in steps:
        pairs = [(f"{medians[c][name]:.3f}", f"{ratios[c][name]:.2f}") for c in clocks]
        table.add_row(name, *(cell for pair in pairs for cell in pair))
    Console().print(table)
    parameters = {
        name: sum(p.numel() for p in part.parameters()) for name, part in networks.named_children()
    }
    result = {
        "settings": {
            "resolution": resolution,
            "channels": channels,
            "multipliers": [1, 2, 2],
            "batch_size": batch_size,
            "threads": threads,
            "device": device,
            "parameters": parameters,
        },
        "software": {"torch": torch.__version__, "cpu": cpu_name()},
        "differences_from_plain": differences,
        "times": times,
        "medians": medians,
        "ratios": ratios,
    }
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
