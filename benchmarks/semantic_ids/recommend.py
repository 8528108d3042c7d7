"""Which recommender predicts the next item best, and at what cost?

    python -m benchmarks.semantic_ids.recommend --methods sasrec --seeds 0,1,2

On the Beauty reviews (22,363 users, 12,101 items): the last item of each user is the test, the last
but one the validation, all items are ranked, and what a user has met is left out. Counting methods
take seconds, SASRec and generative retrieval minutes for each seed. What has a record is not
measured again, and a training that was stopped goes on from its file in --work.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import typer
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
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.semantic_ids import SemanticIDs
from rqtoolkit.semantic_ids.recommend import (
    Blend,
    ContentNeighbours,
    CoOccurrence,
    GenerativeRecommender,
    Markov,
    Popularity,
    SASRec,
    Sequences,
    evaluate_next_item,
    tune,
)

RESULTS = ROOT / "benchmarks" / "results" / "semantic_ids_recommend.json"
FOLDER = "data/recsys/beauty"
KEYS = ("method", "seed")


def content(**settings: Any) -> ContentNeighbours:
    return ContentNeighbours(np.load(development_file(f"{FOLDER}/item_embeddings.npy")), **settings)


# What each counting method makes of the training sequences; chance plays no part in them.
COUNTING: dict[str, Callable[[Sequences], Any]] = {
    "popularity": Popularity,
    "markov": Markov,
    "co-occurrence": CoOccurrence,
    "content": lambda _: content(),
    "content-of-last": lambda _: content(window=1),
    "blend": lambda train: Blend([CoOccurrence(train), content()], [1, 0.3]),
    "blend-of-last": lambda train: Blend([CoOccurrence(train), content(window=1)], [1, 0.5]),
}
TRAINED = ("sasrec", "generative")
METHODS = (*COUNTING, *TRAINED)


def semantic_ids(train: Sequences, seed: int, folder: Path) -> SemanticIDs:
    """Fit them, or read those that a training in the same folder was started with."""
    if not folder.exists():
        embeddings = np.load(development_file(f"{FOLDER}/item_embeddings.npy"))
        SemanticIDs.fit(embeddings, train.item_ids, seed=seed).save(folder)
    return SemanticIDs.load(folder)


def measure(method: str, seed: int, sequences: Sequences, work: Path) -> Record:
    """Fit one method and evaluate it on both held-out items of every user."""
    train, validation, _ = sequences.leave_one_out()
    start, history, chosen = process_time(), [], {}
    if method == "sasrec":
        recommender = SASRec.fit(
            train,
            validation=validation,
            checkpoint=work / f"sasrec-seed{seed}.safetensors",
            seed=seed,
            progress=lambda name, done, total: typer.echo(
                f"{name}: epoch {done} of {total}", err=True
            ),
        )
        history = recommender.history
    elif method == "generative":
        recommender = GenerativeRecommender(semantic_ids(train, seed, work / f"ids-seed{seed}"))
        epochs = recommender.fit(
            train,
            validation=validation,
            checkpoint=work / f"generative-seed{seed}.safetensors",
            seed=seed,
        )
        tune(recommender, validation)
        chosen = {name: getattr(recommender, name) for name in ("new_item_boost", "codes_share")}
        history = [asdict(epoch) for epoch in epochs]
    else:
        recommender = COUNTING[method](train)
    # A training that was resumed knows of the seconds before.
    fit_seconds = history[-1]["cpu_seconds"] if history else process_time() - start
    start = process_time()
    test = evaluate_next_item(recommender, sequences)
    seconds = process_time() - start
    validated = evaluate_next_item(recommender, sequences, split="validation")
    measures = {
        "test": test.to_json(),
        "validation": validated.to_json(),
        "fit_cpu_seconds": fit_seconds,
        "evaluate_cpu_seconds": seconds,
        "epochs": history,
        "chosen_on_validation": chosen,
    }
    return {"method": method, "seed": seed, "commit": commit(), "measures": rounded(measures)}


def figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def show(records: list[Record]) -> Table:
    """Tabulate the records of the test, a line each."""
    table = Table(title="Beauty, next item, all 12,101 items ranked, seen ones left out")
    for column in ("method", "seed", "R@5", "N@5", "R@10", "N@10", "cold R@10", "fit CPU s"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for record in records:
        found = record["measures"]["test"]
        figures = [found["all"][name][k] for k in ("5", "10") for name in ("recall", "ndcg")]
        figures.append(found["cold"]["recall"]["10"])  # None where nobody is cold
        seconds = f"{record['measures']['fit_cpu_seconds']:.0f}"
        table.add_row(record["method"], str(record["seed"]), *map(figure, figures), seconds)
    return table


def main(
    methods: Annotated[str, typer.Option(help=f"Of {', '.join(METHODS)}.")] = ",".join(METHODS),
    seeds: Annotated[str, typer.Option(help="Of the trained methods.")] = "0",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    again: Annotated[bool, typer.Option(help="Measure also what has a record.")] = False,
    work: Annotated[Path, typer.Option(help="Folder of trainings.")] = Path("runs/recommend"),
    out: Annotated[Path, typer.Option(help="JSON file of the results.")] = RESULTS,
) -> None:
    """Measure what has no record yet; lists are separated by commas."""
    chosen = methods.split(",")
    if unknown := [name for name in chosen if name not in METHODS]:
        raise typer.BadParameter(f"--methods {unknown[0]} is none of {', '.join(METHODS)}")
    work.mkdir(parents=True, exist_ok=True)
    sequences = Sequences.read(development_file(f"{FOLDER}/sequences.txt"))
    with limited_threads(threads):
        for method in chosen:
            for seed in map(int, seeds.split(",")) if method in TRAINED else (0,):
                if find(read_records(out), method=method, seed=seed) and not again:
                    continue
                record = measure(method, seed, sequences, work)
                # Read again: another process may have written meanwhile.
                write_records(out, merge(read_records(out), [record], KEYS))
                Console().print(show([record]))
    Console().print(show(read_records(out)))


if __name__ == "__main__":
    typer.run(main)
