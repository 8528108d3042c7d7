"""The command: choose data, codes and methods, measure what has no record, draw and tabulate."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.quantize.figures import CODE, draw_pareto
from benchmarks.quantize.plan import CODES, METHODS, MODELS, PARTS, methods_of
from benchmarks.quantize.tables import replace_tables, tables
from benchmarks.quantize.vectors import DATA
from benchmarks.quantize.work import Bench, missing
from benchmarks.records import ROOT, find, read_records

RESULTS = ROOT / "benchmarks" / "results" / "quantize.json"
PAGE = ROOT / "docs" / "benchmarks.md"
FIGURE = "quantize-pareto.png"


def main(
    data: Annotated[str, typer.Option(help=f"Of {', '.join(DATA)}.")] = ",".join(DATA),
    codes: Annotated[str, typer.Option(help="Depth × entries.")] = ",".join(CODES),
    methods: Annotated[str, typer.Option(help="Models, or single methods.")] = ",".join(MODELS),
    parts: Annotated[str, typer.Option(help="What is measured.")] = ",".join(PARTS),
    rows: Annotated[int | None, typer.Option(help="Fit on few; results in --work.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = len(os.sched_getaffinity(0)),
    repeats: Annotated[int, typer.Option(min=1, help="Turns of the timings.")] = 5,
    neural: Annotated[
        Path | None, typer.Option(help="Fitted neural quantizer; name one set and code.")
    ] = None,
    neural_minutes: Annotated[float, typer.Option(help="Time to fit one.")] = 30,
    again: Annotated[bool, typer.Option(help="Measure also what has a record.")] = False,
    work: Annotated[Path, typer.Option(help="Folder of fits.")] = Path("runs/quantize"),
    out: Annotated[Path | None, typer.Option(help="JSON file of the results.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what is missing.")] = False,
    draw: Annotated[bool, typer.Option(help="Write figure and tables of the docs.")] = False,
) -> None:
    """Measure what has no record yet; lists are separated by commas."""
    if rows is not None:
        work = work / f"rows{rows}"
        out = out or work / "results.json"
    out = out or RESULTS
    if draw:
        if not find(read_records(out), code=CODE):
            raise typer.BadParameter(f"{out} has no results of {CODE} to draw")
        draw_pareto(read_records(out), PAGE.parent / "assets" / FIGURE)
        page = replace_tables(PAGE.read_text(encoding="utf-8"), read_records(out))
        PAGE.write_text(page, encoding="utf-8")
        return
    sets, shapes = _chosen("data", data, DATA), _chosen("codes", codes, CODES)
    names = _chosen("methods", methods, {**MODELS, **METHODS})
    measured = _chosen("parts", parts, PARTS)
    if neural is not None and (len(sets) > 1 or len(shapes) > 1):
        raise typer.BadParameter("--neural is for one data set and code: name them")
    for name in sets:
        for code in shapes:
            if list_:
                for part in measured:
                    todo = missing(read_records(out), name, code, part, methods_of(names, code))
                    typer.echo(f"{name:8} {code:6} {part:8} {' '.join(todo) or 'done'}")
                continue
            bench = Bench(
                data=name,
                code=code,
                work=work,
                out=out,
                rows=rows,
                threads=threads,
                repeats=repeats,
                neural=neural,
                neural_seconds=60 * neural_minutes,
                again=again,
                show=typer.echo,
            )
            bench.run(methods_of(names, code), measured)
    if not list_:
        typer.echo(tables([r for name in sets for r in find(read_records(out), data=name)]))


def _chosen(option: str, names: str, known: Collection[str]) -> list[str]:
    """Return the names in a comma-separated list, all of which have to be known."""
    chosen = names.split(",")
    if unknown := [name for name in chosen if name not in known]:
        raise typer.BadParameter(f"--{option} {unknown[0]} is none of {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    typer.run(main)
