"""How near, how distinct and how even are semantic IDs, and what do they cost to fit?

    python -m benchmarks.semantic_ids.fit
    python -m benchmarks.semantic_ids.fit --settings mixture --items 1000000

On the Beauty catalogue (12,101 embeddings of 384 dimensions, three codes of 256), for each setting
and seed: squared error (in input units, summed over dimensions), share of duplicates
(1 − distinct / items), entries used and perplexity of each level, and the largest first code, of
raw codes; then error and duplicates after matching. "mixture" is a synthetic catalogue of 128
dimensions, items around 2,000 places of random popularity: so close together that most share raw
codes with others. One thread, processor seconds; memory is the most that the process has held.
"""

import resource
import statistics
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.development_data import development_file
from benchmarks.records import (
    ROOT,
    Record,
    commit,
    find,
    merge,
    read_records,
    rounded,
    write_records,
)
from rqtoolkit.functional.rate_distortion import perplexity
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.semantic_ids import SemanticIDs

RESULTS = ROOT / "benchmarks" / "results" / "semantic_ids_fit.json"
BEAUTY = "data/recsys/beauty/item_embeddings.npy"
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "level by level": {"settings": {"rounds": 0}},
    "thorough": {"settings": {"starts": 5, "iterations": 80, "rounds": 12, "beam": 16}},
    "balance 4": {"balance": 4.0},
    "balance 2": {"balance": 2.0},
    "balance 1.5": {"balance": 1.5},
}
PLACES, DIM = 2000, 128


def mixture(items: int) -> NDArray[np.float32]:
    """Return items around places, of which some are far more popular than others."""
    rng = np.random.default_rng(0)
    places = rng.standard_normal((PLACES, DIM), dtype=np.float32)
    own = rng.choice(PLACES, items, p=rng.dirichlet(np.ones(PLACES)))
    x = rng.standard_normal((items, DIM), dtype=np.float32)
    x *= 0.5
    for begin in range(0, items, 2**16):
        x[begin : begin + 2**16] += places[own[begin : begin + 2**16]]
    return x


def duplicate_rate(codes: NDArray) -> float:
    return 1 - len(np.unique(codes, axis=0)) / len(codes)


def measure(x: NDArray, setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fit, match, and return all figures."""
    start = process_time()
    raw = SemanticIDs.fit(x, seed=seed, collisions="allow", **setting)
    fitted = process_time()
    matched = SemanticIDs.assign(raw.quantizer, x, standardization=raw.standardization)
    done = process_time()
    uses = [np.bincount(column, minlength=256) for column in raw.codes.T]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "fit_seconds": fitted - start,
        "mse": raw.mse,
        "duplicate_rate": duplicate_rate(raw.codes),
        "used": [int((own > 0).sum()) for own in uses],
        "perplexity": perplexity(raw.codes, raw.codebook_sizes),
        "largest_first_code": int(uses[0].max()),
        "match_seconds": done - fitted,
        "matched_mse": matched.mse,
        "matched_increase": matched.mse / raw.mse - 1,
        "matched_duplicate_rate": duplicate_rate(matched.codes),
        "matched_largest_first_code": int(np.bincount(matched.codes[:, 0]).max()),
        "memory_gib": memory / 2**20,
    }


def show(records: list[Record]) -> None:
    """Print medians over seeds, with the worst of each."""
    names = ["fit_seconds", "mse", "duplicate_rate", "largest_first_code"]
    names += ["match_seconds", "matched_increase", "matched_duplicate_rate", "memory_gib"]
    table = Table("setting", "seeds", *names, "least used", "least first perplexity")
    for setting in dict.fromkeys(record["setting"] for record in records):
        own = [record["measures"] for record in find(records, setting=setting)]
        cells = []
        for name in names:
            values = [measures[name] for measures in own]
            cells.append(f"{statistics.median(values):.4g} ({max(values):.4g})")
        used = min(min(measures["used"]) for measures in own)
        first = min(measures["perplexity"][0] for measures in own)
        table.add_row(setting, str(len(own)), *cells, str(used), f"{first:.1f}")
    Console(width=200).print(table)


def main(
    settings: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(SETTINGS),
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    items: Annotated[int, typer.Option(help="Of the mixture.")] = 200_000,
    out: Annotated[Path, typer.Option(help="JSON file of the results.")] = RESULTS,
) -> None:
    """Measure settings; "mixture" is one with the synthetic catalogue, of a single seed."""
    for setting in settings.split(","):
        synthetic = setting == "mixture"
        if not synthetic and setting not in SETTINGS:
            raise typer.BadParameter(f"--settings {setting} is none of {', '.join(SETTINGS)}")
        x = mixture(items) if synthetic else np.load(development_file(BEAUTY)).astype(np.float32)
        for seed in range(1 if synthetic else seeds):
            with limited_threads(1):
                measures = measure(x, SETTINGS.get(setting, {}), seed)
            name = f"mixture of {items}" if synthetic else setting
            record = {"setting": name, "seed": seed, "commit": commit()}
            record["measures"] = rounded(measures)
            write_records(out, merge(read_records(out), [record], by=["setting", "seed"]))
    show(read_records(out))


if __name__ == "__main__":
    typer.run(main)
