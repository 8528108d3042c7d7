"""How near, how distinct and how even are semantic IDs, what do they cost, and how do they grow?

    python -m benchmarks.semantic_ids.fit
    python -m benchmarks.semantic_ids.fit --settings growth
    python -m benchmarks.semantic_ids.fit --settings mixture --items 1000000

On the Beauty catalogue (12,101 embeddings of 384 dimensions, three codes of 256), for each setting
and seed: squared error (in input units, summed over dimensions), share of duplicates
(1 − distinct / items), entries used and perplexity of each level, and the largest first code, of
raw codes; then error and duplicates after matching. "mixture" is a synthetic catalogue of 128
dimensions, items around 2,000 places of random popularity: so close together that most share raw
codes with others. "growth" fits the default to ten of eleven items of Beauty, drawn at random, adds
the others, and refits from there. One thread, processor seconds; memory is the most that the
process has held.
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
    "balance 4": {"balance": 4.0},
    "balance 2": {"balance": 2.0},
    "balance 1.5": {"balance": 1.5},
}
PLACES, DIM = 2000, 128
ADDED = 0.1


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


def measure_growth(x: NDArray, seed: int) -> dict[str, Any]:
    """Fit most items, add the others, train on, and return all figures."""
    order = np.random.default_rng(seed).permutation(len(x))
    count = round(len(x) / (1 + ADDED))
    old, new = np.sort(order[:count]), np.sort(order[count:])
    ids = SemanticIDs.fit(x[old], old, seed=seed)
    published = ids.codes.copy()
    raw_errors = [
        float(np.square(ids.decode(ids.encode(x[rows])) - x[rows]).sum(axis=1).mean())
        for rows in (old, new)
    ]
    start = process_time()
    delta = ids.add(x[new], new)
    added = process_time()
    _, stability = ids.refit(x[ids.item_ids])
    return {
        "fitted_mse": delta.fitted_mse,
        "new_mse": delta.mse,
        "new_increase": delta.mse / delta.fitted_mse - 1,
        "new_raw_increase": raw_errors[1] / raw_errors[0] - 1,
        "unchanged": float((ids.codes[:count] == published).all(axis=1).mean()),
        "duplicate_rate": duplicate_rate(ids.codes),
        "add_seconds": added - start,
        "refit_seconds": process_time() - added,
        "refit_kept": list(stability.kept),
        "refit_change": stability.new_mse / stability.old_mse - 1,
    }


def show(records: list[Record]) -> None:
    """Print medians over seeds, with the worst of each; of growth, each seed."""
    if growth := find(records, setting="growth"):
        _show_growth(growth)
    records = [record for record in records if record["setting"] != "growth"]
    if not records:
        return
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


def _show_growth(records: list[Record]) -> None:
    names = ["new_mse", "new_increase", "new_raw_increase", "unchanged", "duplicate_rate"]
    names += ["add_seconds", "refit_seconds", "refit_change"]
    table = Table("seed", *names, "first codes kept")
    for record in records:
        measures = record["measures"]
        figures = [*(measures[name] for name in names), measures["refit_kept"][0]]
        table.add_row(str(record["seed"]), *(f"{figure:.4g}" for figure in figures))
    Console(width=200).print(table)


def main(
    settings: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(SETTINGS),
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    items: Annotated[int, typer.Option(help="Of the mixture.")] = 200_000,
    out: Annotated[Path, typer.Option(help="JSON file of the results.")] = RESULTS,
) -> None:
    """Measure settings, growth, and the synthetic catalogue "mixture", the last with one seed."""
    for setting in settings.split(","):
        synthetic = setting == "mixture"
        if setting not in (*SETTINGS, "growth", "mixture"):
            known = ", ".join([*SETTINGS, "growth", "mixture"])
            raise typer.BadParameter(f"--settings {setting} is none of {known}")
        x = mixture(items) if synthetic else np.load(development_file(BEAUTY)).astype(np.float32)
        for seed in range(1 if synthetic else seeds):
            with limited_threads(1):
                if setting == "growth":
                    measures = measure_growth(x, seed)
                else:
                    measures = measure(x, SETTINGS.get(setting, {}), seed)
            name = f"mixture of {items}" if synthetic else setting
            record = {"setting": name, "seed": seed, "commit": commit()}
            record["measures"] = rounded(measures)
            write_records(out, merge(read_records(out), [record], by=["setting", "seed"]))
    show(read_records(out))


if __name__ == "__main__":
    typer.run(main)
