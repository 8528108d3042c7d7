"""The command: choose tasks, do those without a result, draw tables and figures."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.paper_claims.figures import draw_figures
from benchmarks.paper_claims.plan import DATA, PARTS, TASKS, ordered, remaining
from benchmarks.paper_claims.tables import replace_tables, tables
from benchmarks.paper_claims.work import finished, perform
from benchmarks.records import ROOT, find, merge, read_records, write_records

RESULTS = ROOT / "benchmarks" / "results" / "paper_claims.json"
PAGE = ROOT / "docs" / "paper-claims.md"
KEYS = ("data", "seed", "task")  # of which there is one record each


def main(
    part: Annotated[list[str], typer.Option(help=", ".join(PARTS))] = [],  # noqa: B006
    data: Annotated[list[str], typer.Option(help=", ".join(DATA))] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Seeds; by default those of the plan.")] = [],  # noqa: B006
    work: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/paper-claims"),
    out: Annotated[Path | None, typer.Option(help="JSON file of the results.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what is done, do nothing.")] = False,
    draw: Annotated[
        bool, typer.Option(help="Write figures and tables of the docs, train nothing.")
    ] = False,
    quick: Annotated[bool, typer.Option(help="20 steps a training, results in --work.")] = False,
) -> None:
    """Train and measure what has no result yet."""
    for name, chosen, known in (("part", part, PARTS), ("data", data, DATA)):
        if unknown := set(chosen) - set(known):
            raise typer.BadParameter(f"{name} {sorted(unknown)} is none of {', '.join(known)}")
    if draw:
        draw_figures(read_records(out or RESULTS), PAGE.parent / "assets")
        text = replace_tables(PAGE.read_text(encoding="utf-8"), read_records(out or RESULTS))
        PAGE.write_text(text, encoding="utf-8")
        return
    if quick:
        work, out = work / "quick", work / "quick" / "results.json"
    out = out or RESULTS
    names = list(dict.fromkeys(name for chosen in part or PARTS for name in PARTS[chosen]))
    for images in data or DATA:
        for number in seed or DATA[images]:
            if list_:
                _show(out, images, number, names)
            else:
                _work(out, images, number, names, work=work, quick=quick)
    if not list_:
        typer.echo(tables(read_records(out)))


def _show(out: Path, data: str, seed: int, names: list[str]) -> None:
    """Print one line a task: its CPU seconds, or that it is to do."""
    for task in ordered(names):
        done = find(read_records(out), data=data, seed=seed, task=task.name)
        state = f"{done[0]['cpu_seconds']:7.1f} CPU s" if done else "  to do"
        typer.echo(f"{data:8} {seed} {task.name:14} {state}")


def _work(out: Path, data: str, seed: int, names: list[str], *, work: Path, quick: bool) -> None:
    """Do what remains of one data set and seed, every result written as it comes."""
    torch.set_num_threads(1)  # CPU seconds of many threads would not compare
    todo = remaining(
        names,
        done=lambda name: bool(find(read_records(out), data=data, seed=seed, task=name)),
        ready=lambda name: finished(work, data, seed, TASKS[name]),
    )
    for task in todo:
        record = perform(task, data, seed, work=work, quick=quick)
        write_records(out, merge(read_records(out), [record], KEYS))
        typer.echo(f"{data} {seed} {task.name}: {record['cpu_seconds']} CPU s")


if __name__ == "__main__":
    typer.run(main)
