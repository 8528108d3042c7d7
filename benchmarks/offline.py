"""How low is the error of an offline fit at equal bits, and what does it cost, beside faiss?

    python -m benchmarks.offline DATA.npy --depth 3 --codebook-size 256 --seeds 5

All systems run in turn within each seed, on one matrix; a fifth of it is held out. Times are CPU
seconds, so a busy machine changes them little; compare ratios, not single figures.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Annotated

import faiss
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from rqtoolkit import ResidualQuantizer
from rqtoolkit.functional.rate_distortion import distortion
from rqtoolkit.io.vectors import open_vectors

Codec = tuple[Callable[[NDArray], NDArray], Callable[[NDArray], NDArray]]


def ours(x: NDArray, depth: int, size: int, seed: int, *, beam: int, rounds: int) -> Codec:
    quantizer = ResidualQuantizer(x.shape[1], depth, size)
    quantizer.fit(x, beam=beam, rounds=rounds, seed=seed, max_rows=len(x))
    return (
        lambda data: quantizer.encode(torch.from_numpy(data)).numpy(),
        lambda codes: quantizer.decode(torch.from_numpy(codes)).numpy(),
    )


def faiss_residual(x: NDArray, depth: int, size: int, seed: int, *, beam: int) -> Codec:
    quantizer = faiss.ResidualQuantizer(x.shape[1], depth, int(np.log2(size)))
    quantizer.max_beam_size = beam
    quantizer.cp.seed = 1234 + seed
    quantizer.train(x)
    quantizer.use_beam_LUT = 1
    return quantizer.compute_codes, quantizer.decode


SYSTEMS: dict[str, Callable[[NDArray, int, int, int], Codec]] = {
    "faiss, beam 1": lambda *a: faiss_residual(*a, beam=1),
    "faiss, beam 5": lambda *a: faiss_residual(*a, beam=5),
    "rqtoolkit, k-means alone": lambda *a: ours(*a, beam=1, rounds=0),
    "rqtoolkit, greedy": lambda *a: ours(*a, beam=1, rounds=4),
    "rqtoolkit (default)": lambda *a: ours(*a, beam=4, rounds=4),
}


def measure(system: str, x: NDArray, held_out: NDArray, depth: int, size: int, seed: int) -> dict:
    begun = process_time()
    encode, decode = SYSTEMS[system](x, depth, size, seed)
    fitted = process_time()
    codes = encode(x)
    encoded = process_time()
    return {
        "system": system,
        "seed": seed,
        "mse": distortion(x, decode(codes)),
        "held_out_mse": distortion(held_out, decode(encode(held_out))),
        "fit_seconds": fitted - begun,
        "encode_vectors_per_second": len(x) / (encoded - fitted),
    }


def main(
    data: Path,
    depth: int = 3,
    codebook_size: int = 256,
    seeds: int = 5,
    held_out: Annotated[float, typer.Option(help="Share of the rows, drawn at random.")] = 0.2,
    out: Path = Path("offline.json"),
) -> None:
    """Compare fits of one matrix."""
    vectors = open_vectors(data)
    x = np.concatenate(list(vectors.chunks(2**14)))
    order = np.random.default_rng(0).permutation(len(x))
    cut = int(len(x) * (1 - held_out))
    train, rest = x[order[:cut]], x[order[cut:]]
    results = [
        measure(system, train, rest, depth, codebook_size, seed)
        for seed in range(seeds)
        for system in SYSTEMS
    ]
    figures = list(results[0])[2:]
    table = Table(title=f"{data.name}: {cut} × {x.shape[1]}, {depth} × {codebook_size}, medians")
    for column in ("system", *figures, "worst mse"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for system in SYSTEMS:
        own = [result for result in results if result["system"] == system]
        medians = [f"{median(result[figure] for result in own):.4g}" for figure in figures]
        table.add_row(system, *medians, f"{max(result['mse'] for result in own):.4g}")
    Console(width=140).print(table)
    out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
