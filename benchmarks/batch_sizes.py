"""Does the error of online training depend on how many vectors a batch has?

    python -m benchmarks.batch_sizes

Trains quantizers of 1,024 codes, four levels and 16 dimensions by 400 updates on Gaussian vectors,
white or of unequal variance, with several numbers of vectors for each codebook entry; prints the
relative error in eval mode on 8,192 new vectors.
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from rqtoolkit import ResidualQuantizer
from rqtoolkit.functional.rate_distortion import relative_error

RATIOS = (4, 1, 1 / 2, 1 / 4, 1 / 16)
SPREADS = {"white": torch.ones(16), "unequal": torch.arange(1, 17) ** -0.5}


def train(spread: torch.Tensor, ratio: float, *, shared: bool, size: int, steps: int) -> dict:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(16, 4, size, shared_codebook=shared)
    for _ in range(steps):
        quantizer(torch.randn(int(size * ratio), 16) * spread)
    x = torch.randn(8192, 16) * spread
    quantizer.eval()
    codes = quantizer.encode(x)
    return {
        "vectors_per_entry": ratio,
        "relative_error": relative_error(x, quantizer.decode(codes)),
        "usage": quantizer(x).stats.usage,
    }


def main(
    codebook_size: int = 1024,
    steps: int = 400,
    out: Annotated[Path, typer.Option(help="JSON to write.")] = Path("batch_sizes.json"),
) -> None:
    """Compare batch sizes."""
    table = Table(title=f"relative error, {codebook_size} codes, depth 4, {steps} updates")
    for column in ("features", "codebook", *(f"{ratio:g}" for ratio in RATIOS)):
        table.add_column(column)
    results = []
    for name, spread in SPREADS.items():
        for shared in (True, False):
            kind = "shared" if shared else "per level"
            row = [
                train(spread, ratio, shared=shared, size=codebook_size, steps=steps)
                for ratio in RATIOS
            ]
            table.add_row(name, kind, *(f"{result['relative_error']:.4f}" for result in row))
            results += [{"features": name, "codebook": kind, **result} for result in row]
    Console().print(table)
    out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
