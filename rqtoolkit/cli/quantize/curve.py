"""Distortion over depth and codebook size, with the bound of Gaussian data beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rqtoolkit.cli.console import json_text
from rqtoolkit.cli.quantize.streams import Encoder, chunk_rows, measure
from rqtoolkit.cli.quantize.training import fit_quantizer, options_used, training_rows
from rqtoolkit.errors import ArtifactError, DataError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.functional.rate_distortion import bits_per_vector, gaussian_distortion
from rqtoolkit.functional.streaming import covariance
from rqtoolkit.io.atomic import atomic_path, check_output
from rqtoolkit.io.vectors import VectorTable

__all__ = ["run_sweep"]

_CHUNK_ELEMENTS = 2**22


def run_sweep(
    vectors: VectorTable,
    *,
    depths: Sequence[int],
    sizes: Sequence[int],
    out: Path,
    train_rows: int | None,
    method: str,
    options: Mapping[str, Any],
    seed: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Fit every depth with every codebook size; write results.json and rate_distortion.png.

    Args:
        vectors: Data to fit on and to measure.
        depths: Depths to fit.
        sizes: Codebook sizes to fit.
        out: Folder to write into; made where it is missing.
        train_rows: Rows to fit on, drawn at random; None for 1024 for each codeword.
        method: Kind of quantizer.
        options: As `fit_quantizer` takes them.
        seed: Fixes the result.
        progress: Told of each fit.

    Returns:
        For each fit its depth, codebook_size, bits_per_vector, mse, relative_error, and
        gaussian_mse, the least mse of Gaussian data of the same covariance at that rate.

    Raises:
        DataError: If there are fewer vectors than codes.
        ArtifactError: If the folder cannot be made.
    """
    if vectors.rows < max(sizes):
        raise DataError(
            f"{vectors.path} has {vectors.rows} vectors, fewer than the {max(sizes)} codes of a "
            "level. Choose smaller codebooks."
        )
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ArtifactError(f"--out={out} has to be a folder; {existing} is a file.")
    check_output(existing / "results.json")
    check_output(existing / "rate_distortion.png")
    rows = max(1, _CHUNK_ELEMENTS // vectors.dim)
    spectrum = np.linalg.eigvalsh(covariance(vectors.chunks(rows))).clip(min=0)
    results = []
    for size in sizes:
        x = training_rows(vectors, size, train_rows, method=method, seed=seed)
        for depth in depths:
            name = f"codebook size {size}, depth {depth}"

            def tell(text: str, done: int, total: int, name: str = name) -> None:
                progress(f"{name}: {text}", done, total)

            quantizer = fit_quantizer(
                x, depth, size, method=method, options=options, seed=seed, progress=tell
            ).freeze()
            chunks = vectors.chunks(chunk_rows(quantizer))
            sums = measure(Encoder(quantizer, tell), chunks, vectors.rows)
            bits = bits_per_vector(quantizer.codebook_sizes)
            results.append(
                {
                    "depth": depth,
                    "codebook_size": size,
                    "bits_per_vector": bits,
                    "mse": sums.mse[-1],
                    "relative_error": sums.relative_error[-1],
                    "gaussian_mse": gaussian_distortion(spectrum, bits),
                }
            )
    report = {
        "data": vectors.path.name,
        "rows": vectors.rows,
        "dim": vectors.dim,
        "variance": float(spectrum.sum()),
        "options": {"train_rows": train_rows, "seed": seed, **options_used(method, options)},
        "results": results,
    }
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "results.json") as temporary:
        temporary.write_text(json_text(report) + "\n")
    with atomic_path(out / "rate_distortion.png") as temporary:
        # No metadata: equal results give equal bytes whatever the version of matplotlib.
        draw(results, spectrum).savefig(temporary, dpi=150, metadata={"Software": None})
    return results


def draw(results: Sequence[dict[str, Any]], spectrum: NDArray[np.float64]) -> Figure:
    """Return the rate-distortion curve, one line for each codebook size.

    Args:
        results: As `run_sweep` returns them.
        spectrum: Eigenvalues of the covariance, shape (dim,).
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for size in dict.fromkeys(result["codebook_size"] for result in results):
        line = [result for result in results if result["codebook_size"] == size]
        bits = [result["bits_per_vector"] for result in line]
        axes.plot(bits, [result["mse"] for result in line], "o-", label=f"codebook size {size}")
    rates = np.linspace(0, max(result["bits_per_vector"] for result in results), 200)
    bound = [gaussian_distortion(spectrum, float(rate)) for rate in rates]
    axes.plot(rates, bound, "--", color="0.5", label="bound for Gaussian data of this covariance")
    axes.set(xlabel="bits per vector", ylabel="mse (sum over dimensions)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
