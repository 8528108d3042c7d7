"""How far are our outputs from those of the paper's own code, on one checkpoint of theirs?

    python -m benchmarks.parity

Reads `parity/` in the folder of development data (`RQTOOLKIT_TEST_DATA`, by default `../shared`):
`official/`, a checkpoint in the authors' layout, and what their code gave for it. Integers and
drawn samples have to be equal; real tensors may differ by 1e-5 of their largest value.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.development_data import development_file
from imagegen import import_release
from imagegen.autoencoder import RQVAE
from rqtoolkit import RQTransformer

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Comparison:
    """One tensor of the authors' code and ours.

    Attributes:
        stage: 1 or 2.
        name: Name of the stored tensor.
        shape: Its shape.
        largest: Largest absolute value of theirs.
        difference: Largest difference, as a share of it; of integers, the share that differs.
        exact: Whether no difference at all is allowed.
    """

    stage: int
    name: str
    shape: tuple[int, ...]
    largest: float
    difference: float
    exact: bool

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed."""
        return self.difference <= (0 if self.exact else TOLERANCE)


def compare(stage: int, name: str, ours: Tensor, theirs: Tensor) -> Comparison:
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} for {tuple(theirs.shape)}"
    exact = not theirs.is_floating_point()
    largest = theirs.abs().max()
    if exact:
        difference = (ours != theirs).double().mean()
    else:
        difference = (ours.double() - theirs.double()).abs().max() / largest.double()
    return Comparison(stage, name, tuple(theirs.shape), float(largest), float(difference), exact)


def autoencoder_outputs(model: RQVAE, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, ours) for every tensor of stage 1, by the names of the stored ones."""
    quantizer, depth = model.quantizer, model.quantizer.depth
    z_e = model.latents(images)
    out = quantizer(z_e)
    yield "z_e", z_e
    yield "z_q", out.quantized
    yield "commit", out.commitment_loss
    codes = model.encode(images)
    yield "code", codes
    reconstruction = model(images).reconstruction
    yield "recon", reconstruction
    yield "decode_code", model.decode(codes)
    soft = quantizer.soft_codes(z_e, 0.5)
    yield "soft_codes_t05", soft.probabilities
    yield "soft_codes_code", soft.codes
    seeded = torch.Generator().manual_seed(11)
    drawn = quantizer.soft_codes(z_e, 0.5, stochastic=True, generator=seeded)
    yield "stochastic_code_seed11", drawn.codes
    tables = quantizer.codebooks.expand(depth, -1, -1)
    codewords = torch.stack([F.embedding(codes[..., d], tables[d]) for d in range(depth)], -2)
    yield "emb_with_depth", codewords
    for level in range(depth):
        yield f"partial.{level}_select", model.decode_latents(codewords[..., level, :])
        yield f"partial.{level}_add", model.decode(codes[..., : level + 1])
    error, commitment = F.mse_loss(reconstruction, images), out.commitment_loss
    # In validation the authors scale by batch and channels: what their loop divides by later.
    for mode, scale, batch in (("train", 1, 1), ("valid", images.shape[0] * 3, images.shape[0])):
        yield f"losses_{mode}.loss_recon", error * scale
        yield f"losses_{mode}.loss_latent", commitment * batch
        yield f"losses_{mode}.loss_total", error * scale + 0.25 * commitment * batch


def transformer_outputs(
    model: RQTransformer, theirs: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, ours) for every tensor of stage 2, fed with the stored codes and classes."""
    codes, cond = theirs["codes"], theirs["cond"]
    yield "logits", model(codes, cond)
    yield "loss_hard", model.loss(codes, cond=cond)
    yield "loss_soft", model.loss(codes, cond=cond, targets=theirs["soft"])
    yield "codebook_loss", model.losses(codes, cond=cond)
    batch = len(cond)
    yield "greedy", model.generate(batch, cond=cond, top_k=1)
    seeded = torch.Generator().manual_seed(3)
    yield "sample_seed3", model.generate(batch, cond=cond, generator=seeded)
    filters = {"temperature": 0.9, "top_k": [64, 32, 16, 8], "top_p": [0.95, 0.9, 0.9, 0.8]}
    seeded = torch.Generator().manual_seed(3)
    yield "sample_seed3_topkp", model.generate(batch, cond=cond, generator=seeded, **filters)


@torch.no_grad()
def compare_release(folder: Path) -> list[Comparison]:
    """Compare everything that is stored beside the checkpoint in `folder`/official."""
    autoencoder, prior = import_release(folder / "official")
    assert prior is not None
    stage1 = load_file(folder / "rqvae_expected.safetensors")
    stage2 = load_file(folder / "rqtransformer_expected.safetensors")
    found = [
        compare(1, name, ours, stage1.pop(name))
        for name, ours in autoencoder_outputs(autoencoder, stage1.pop("xs"))
    ]
    found += [
        compare(2, name, ours, stage2[name]) for name, ours in transformer_outputs(prior, stage2)
    ]
    left = {*stage1, *stage2} - {row.name for row in found}
    assert left == {"codes", "cond", "soft"}, f"not compared: {left}"  # inputs of stage 2
    return found


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    rows = compare_release(development_file("parity"))
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        table = Table("stage", "tensor", "shape", "largest value", "difference", "allowed", "")
        for row in rows:
            table.add_row(
                str(row.stage),
                row.name,
                " × ".join(map(str, row.shape)),
                f"{row.largest:.4g}",
                "none" if row.difference == 0 else f"{row.difference:.1e}",
                "none" if row.exact else f"{TOLERANCE:.0e}",
                "ok" if row.passed else "FAILED",
            )
        Console(width=110).print(table)
    if not all(row.passed for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
