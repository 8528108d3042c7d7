"""The command: measure what has no record yet, print the tables or write them into the docs."""

import json
from collections.abc import Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.records import (
    ROOT,
    Record,
    commit,
    merge,
    processor,
    read_records,
    rounded,
    write_records,
)
from benchmarks.trainable.batches import BOOKS, FEATURES, RATIOS, train_on_batches
from benchmarks.trainable.plan import OWN, PARTS, QUANTIZERS, SHAPES, build
from benchmarks.trainable.steps import PEER, measure_memory, measure_times
from benchmarks.trainable.tables import replace_tables, tables
from benchmarks.trainable.training import DEPTH, DIM, SETS, SIZE, train_and_measure

RESULTS = ROOT / "benchmarks" / "results" / "trainable.json"
PAGE = ROOT / "docs" / "benchmarks.md"
KEYS = ("part", "case", "quantizer")
MEMORY_DEPTH = 4
"""Of the steps whose memory is measured."""

Job = tuple[str, str, str]
"""Part, case and quantizer: what a record is of."""


def jobs(parts: Collection[str], data: Collection[str], seeds: int) -> Iterator[Job]:
    """Yield everything that there is to measure."""
    if "speed" in parts:
        yield from (("speed", name, "both") for name in SHAPES)
    if "memory" in parts:
        cases = [name for name, shape in SHAPES.items() if shape.depth == MEMORY_DEPTH]
        yield from (("memory", name, quantizer) for name in cases for quantizer in (OWN, PEER))
    if "error" in parts:
        yield from (
            ("error", f"{name}-{seed}", quantizer)
            for seed in range(seeds)
            for name in data
            for quantizer in QUANTIZERS
        )
    if "batches" in parts:
        yield from (
            ("batches", f"{features}-{books}-{ratio:g}", OWN)
            for features in FEATURES
            for books in BOOKS
            for ratio in RATIOS
        )


def measure(job: Job, *, repeats: int, threads: int, work: Path) -> dict[str, Any]:
    """Measure one of the `jobs`."""
    part, case, quantizer = job
    if part == "speed":
        return measure_times(SHAPES[case], repeats=repeats)
    if part == "memory":
        return measure_memory(quantizer, SHAPES[case], threads=threads)
    if part == "error":
        data, seed = case.rsplit("-", 1)
        return train_and_measure(
            data, lambda: build(quantizer, DIM, DEPTH, SIZE), seed=int(seed), work=work
        )
    features, rest = case.split("-", 1)
    books, ratio = rest.rsplit("-", 1)
    return train_on_batches(features, books, float(ratio))


def main(
    parts: Annotated[str, typer.Option(help=f"Of {', '.join(PARTS)}.")] = ",".join(PARTS),
    data: Annotated[str, typer.Option(help=f"Of {', '.join(SETS)}.")] = ",".join(SETS),
    seeds: Annotated[int, typer.Option(min=1, help="Of each training.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of the timings.")] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    again: Annotated[bool, typer.Option(help="Measure also what has a record.")] = False,
    work: Annotated[Path, typer.Option(help="Folder of decoded images.")] = Path("runs/trainable"),
    out: Annotated[Path, typer.Option(help="JSON file of the results.")] = RESULTS,
    list_: Annotated[bool, typer.Option("--list", help="Show what is missing.")] = False,
    draw: Annotated[bool, typer.Option(help="Write the tables of the docs.")] = False,
) -> None:
    """Measure what has no record yet; lists are separated by commas."""
    if draw:
        page = replace_tables(PAGE.read_text(encoding="utf-8"), read_records(out))
        PAGE.write_text(page, encoding="utf-8")
        return
    chosen = _chosen("parts", parts, PARTS), _chosen("data", data, SETS)
    done = {tuple(r[k] for k in KEYS) for r in read_records(out)} if not again else set()
    torch.set_num_threads(threads)
    for job in jobs(*chosen, seeds):
        if job in done:
            continue
        if list_:
            typer.echo(" ".join(job))
            continue
        measures = rounded(measure(job, repeats=repeats, threads=threads, work=work))
        write_records(out, merge(read_records(out), [_record(job, threads, measures)], KEYS))
        typer.echo(f"{' '.join(job)}: {json.dumps(measures)}")
    if not list_:
        typer.echo(tables(read_records(out)))


def _record(job: Job, threads: int, measures: dict[str, Any]) -> Record:
    return {
        **dict(zip(KEYS, job, strict=True)),
        "commit": commit(),
        "versions": {name: version(name) for name in ("torch", "vector-quantize-pytorch")},
        "processor": processor(),
        "threads": threads,
        "measures": measures,
    }


def _chosen(option: str, names: str, known: Collection[str]) -> list[str]:
    """Return the names in a comma-separated list, all of which have to be known."""
    chosen = names.split(",")
    if unknown := [name for name in chosen if name not in known]:
        raise typer.BadParameter(f"--{option} {unknown[0]} is none of {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    typer.run(main)
