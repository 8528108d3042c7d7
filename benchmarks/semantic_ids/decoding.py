"""What does it cost to keep a generator to semantic IDs that exist?

    python -m benchmarks.semantic_ids.decoding

On the semantic IDs of the Beauty catalogue (12,101 items, three codes of 256) and of a million
random ones: time to build the prefix table, to take a subset, to mask and step 3,200 beams at each
level, beside nested dictionaries walked in a Python loop, and users a second of beam search with 50
beams whose scores cost nothing. One thread, processor seconds, medians; both programs take turns.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.development_data import development_file
from benchmarks.records import ROOT, Record, commit, merge, read_records, rounded, write_records
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.semantic_ids import SemanticIDs
from rqtoolkit.semantic_ids.decoding import PrefixTable, beam_search

RESULTS = ROOT / "benchmarks" / "results" / "semantic_ids_decoding.json"
SIZES = (256, 256, 256)
BEAUTY = "data/recsys/beauty/item_embeddings.npy"


def cpu_seconds(*functions: Callable[[], Any], repeats: int) -> list[float]:
    """Return the median processor seconds of each function; they take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()  # compiles
    for _ in range(repeats):
        for function, own in zip(functions, times, strict=True):
            start = process_time()
            function()
            own.append(process_time() - start)
    return [statistics.median(own) for own in times]


class DictionaryTrie:
    """What most programs do: nested dictionaries, one Python loop over beams."""

    def __init__(self, codes: NDArray) -> None:
        self.root: dict = {}
        for row, code in enumerate(codes.tolist()):
            node = self.root
            for part in code:
                node = node.setdefault(part, {})
            node["row"] = row

    def mask_and_step(self, prefixes: list[list[int]], following: list[int]) -> NDArray:
        """Return the masks (B, K), and step (the result is not needed)."""
        mask = np.zeros((len(prefixes), SIZES[0]), bool)
        for row, (prefix, code) in enumerate(zip(prefixes, following, strict=True)):
            node = self.root
            for part in prefix:
                node = node[part]
            mask[row, list(node)] = True
            node.get(code)
        return mask


def masks(codes: NDArray, table: PrefixTable, beams: int, repeats: int) -> dict[str, Any]:
    """Time mask and step of every level, on numpy, torch and nested dictionaries."""
    rng, trie, tensors = np.random.default_rng(0), DictionaryTrie(codes), table.to("cpu")
    milliseconds = []
    for level in range(len(SIZES)):
        chosen = codes[rng.integers(len(codes), size=beams)]
        prefixes, following = chosen[:, :level], chosen[:, level]
        states, lists = table.find(prefixes), (prefixes.tolist(), following.tolist())
        moved = (torch.from_numpy(states), torch.from_numpy(following.copy()))
        assert np.array_equal(table.mask(states), trie.mask_and_step(*lists))
        times = cpu_seconds(
            partial(_mask_and_step, table, states, following),
            partial(_mask_and_step, tensors, *moved),
            partial(trie.mask_and_step, *lists),
            repeats=repeats,
        )
        milliseconds.append([1e3 * seconds for seconds in times])
    names = ("numpy", "torch", "dictionaries")
    columns = zip(*milliseconds, strict=True)
    return {
        f"mask_and_step_ms_{name}": list(column)
        for name, column in zip(names, columns, strict=True)
    }


def _mask_and_step(table: PrefixTable, states: Any, codes: Any) -> None:
    table.mask(states)
    table.step(states, codes)


def searches(
    codes: NDArray, table: PrefixTable, users: int, beams: int, repeats: int
) -> dict[str, Any]:
    """Time beam search over random scores: of one head a level, and of every prefix its own."""
    rng = np.random.default_rng(0)
    heads = np.log(rng.dirichlet(np.ones(SIZES[0]), size=(len(SIZES), users, 1)))
    heads = heads.astype(np.float32)
    own = np.log(rng.dirichlet(np.ones(SIZES[0]), size=(len(SIZES), users, beams)))
    own = own.astype(np.float32)

    def shared(prefixes: NDArray, _: NDArray) -> NDArray:
        return heads[prefixes.shape[-1]]

    def conditional(prefixes: NDArray, _: NDArray) -> NDArray:
        return own[prefixes.shape[-1]][:, : prefixes.shape[1]]

    found = beam_search(conditional, table, users, beams=beams)
    valid = float((codes[found.rows] == found.codes).all(-1)[found.rows >= 0].mean())
    every = beam_search(lambda *given: shared(*given)[:2], table, 2, beams=len(table))
    scores = sum(heads[level, :2, 0][:, codes[:, level]] for level in range(len(SIZES)))
    exact = bool(np.allclose(every.scores, -np.sort(-scores), atol=1e-4))
    times = cpu_seconds(
        lambda: beam_search(shared, table, users, beams=beams),
        lambda: beam_search(conditional, table, users, beams=beams),
        repeats=repeats,
    )
    return {
        "users_per_second_one_head_a_level": users / times[0],
        "users_per_second_own_scores": users / times[1],
        "valid": valid,
        "exact_with_all_beams": exact,
    }


def table_times(codes: NDArray, repeats: int) -> dict[str, Any]:
    """Time building a table, and taking every other row."""
    table, every_other = PrefixTable(codes, SIZES), np.arange(0, len(codes), 2)
    build, subset = cpu_seconds(
        lambda: PrefixTable(codes, SIZES), lambda: table.subset(every_other), repeats=repeats
    )
    return {"items": len(codes), "build_ms": 1e3 * build, "subset_ms": 1e3 * subset}


def main(
    beams: Annotated[int, typer.Option(help="Beams that are masked at once.")] = 3200,
    width: Annotated[int, typer.Option(help="Beams a user in searches.")] = 50,
    users: Annotated[int, typer.Option(help="Users searched at once.")] = 256,
    repeats: Annotated[int, typer.Option(min=1)] = 21,
    million: Annotated[bool, typer.Option(help="Time a million items too.")] = True,
    out: Annotated[Path, typer.Option(help="JSON file of the results.")] = RESULTS,
) -> None:
    """Time tables and searches; print and keep the results."""
    with limited_threads(1):
        embeddings = np.load(development_file(BEAUTY)).astype(np.float32)
        # Few rounds: the tree's shape is all that matters here.
        ids = SemanticIDs.fit(embeddings, settings={"rounds": 1})
        codes = ids.codes[np.random.default_rng(0).permutation(len(ids.codes))]
        table = PrefixTable(codes, SIZES)
        measured = {
            "beauty": {
                **table_times(codes, repeats),
                **masks(codes, table, beams, repeats),
                **searches(codes, table, users, width, repeats),
            }
        }
        if million:
            random = np.random.default_rng(0).integers(256, size=(1_000_000, len(SIZES)))
            measured["random million"] = table_times(random, 3)
    records: list[Record] = [
        {"data": data, "commit": commit(), "measures": rounded(measures)}
        for data, measures in measured.items()
    ]
    write_records(out, merge(read_records(out), records, by=["data"]))
    shown = Table("data", "measure", "value")
    for record in records:
        for name, value in record["measures"].items():
            shown.add_row(record["data"], name, str(value))
    Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
