"""The results as Markdown: what rqtoolkit gains on its peers, and every method of every code."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from textwrap import indent

from benchmarks.pages import markdown_table, plain, replace_between
from benchmarks.quantize.plan import BEAMS, CODES, METHODS
from benchmarks.quantize.vectors import DATA
from benchmarks.quantize.work import ALL
from benchmarks.records import Record, find

__all__ = ["MARKS", "Figures", "replace_tables", "tables"]

MARKS = ("<!-- tables, written by `--draw` -->", "<!-- end of tables -->")
MIB = 2**20
_PICTURE = "![Held-out error against the time to encode a vector](assets/quantize-pareto.png)"
_NOTHING = "Not measured yet."
OWN_TABLES = [name for name, method in METHODS.items() if method.model == "residual"]


@dataclass(frozen=True)
class Figures:
    """What the records of one data set and code say; None where nothing was measured.

    Attributes:
        records: Records of this data set and code.
    """

    records: Sequence[Record]

    def fit(self, model: str, figure: str) -> float | None:
        """Return a figure of a training."""
        return self._of("fit", model, figure)

    def error(self, method: str) -> float | None:
        """Return the held-out relative error."""
        return self._of("quality", method, "relative_error")

    def recall(self, method: str, k: int) -> float | None:
        """Return 1-recall@k, k 1 or 10."""
        return self._of("quality", method, f"one_recall_at_{k}")

    def memory(self, method: str) -> float | None:
        """Return the peak extra memory of encoding, MiB."""
        taken = self._of("memory", method, "extra_bytes")
        return None if taken is None else taken / MIB

    def rate(self, method: str, way: str, unit: str = "per_second") -> float | None:
        """Return vectors a second of "encode" or "decode"; "gemm" is a method of either."""
        for record in find(self.records, part="speed", method=ALL):
            if method == "gemm":
                return record["measures"]["gemm"][unit]
            return record["measures"]["methods"].get(method, {}).get(way, {}).get(unit)
        return None

    def _of(self, part: str, method: str, figure: str) -> float | None:
        for record in find(self.records, part=part, method=method):
            return record["measures"][figure]
        return None


def replace_tables(page: str, records: Sequence[Record]) -> str:
    """Return a page of the docs with figure and tables between its two marks written anew."""
    sets = _by_set(records)
    folded = [
        f'??? note "{_title(*key)}"\n\n{indent(_methods(figures), "    ")}'
        for key, figures in sets.items()
    ]
    text = "\n\n".join([_PICTURE, *_summaries(sets), *folded]) if sets else _NOTHING
    return replace_between(page, MARKS, text)


def tables(records: Sequence[Record]) -> str:
    """Return the ratios of all data sets and codes, then a table for each of them."""
    sets = _by_set(records)
    single = [f"### {_title(*key)}\n\n{_methods(figures)}" for key, figures in sets.items()]
    return "\n\n".join([*_summaries(sets), *single]) if sets else _NOTHING


def _by_set(records: Sequence[Record]) -> dict[tuple[str, str], Figures]:
    """Return the figures of each data set and code that has some."""
    return {
        (data, code): Figures(own)
        for data in DATA
        for code in CODES
        if (own := find(records, data=data, code=code))
    }


def _title(data: str, code: str) -> str:
    return f"{DATA[data][0]}, {code.replace('x', '×')}"


def _summaries(sets: dict[tuple[str, str], Figures]) -> list[str]:
    return ["### Error", *_errors(sets), "### Cost", *_costs(sets)]


def _errors(sets: dict[tuple[str, str], Figures]) -> list[str]:
    """Return the ratios of our errors to those of peers."""
    head = [
        "data",
        *(f"beam {beam}" for beam in BEAMS),
        "ours in the time of faiss's beam 32",
        "LSQ: ours, in its time / 5",
        "neural / our best",
    ]
    rows = []
    for key, f in sets.items():
        beams = [_ratio(f.error(f"residual-{b}"), f.error(f"faiss-rq-{b}-tables")) for b in BEAMS]
        within = _least_error_within(f, f.rate("faiss-rq-32-tables", "encode"))
        lsq = f.rate("faiss-lsq", "encode")
        rows.append(
            [
                _title(*key),
                *(_cell(ratio) for ratio in beams),
                _cell(_ratio(within, f.error("faiss-rq-32-tables"))),
                _cell(_ratio(_least_error_within(f, lsq and 5 * lsq), f.error("faiss-lsq"))),
                _cell(_ratio(f.error("neural"), _least_error_within(f, 0.0))),
            ]
        )
    return ["Held-out errors of rqtoolkit over those of faiss.", markdown_table(head, rows)]


def _least_error_within(f: Figures, rate: float | None) -> float | None:
    """Return the least error of our tables among methods that encode at this rate at least."""
    if rate is None:
        return None
    fast = [name for name in OWN_TABLES if (f.rate(name, "encode") or 0.0) >= rate]
    errors = [error for name in fast if (error := f.error(name)) is not None]
    return min(errors, default=None)


def _costs(sets: dict[tuple[str, str], Figures]) -> list[str]:
    """Return the ratios of our speeds to those of faiss, by the clock and by the processor."""
    head = [
        *("data", "greedy", "of the GEMM"),
        *("beam 5", "beam 16", "beam 32", "decode", "training", "memory, MiB", "of faiss"),
    ]
    rows = []
    for key, f in sets.items():
        pairs = [(f"residual-{b}", f"faiss-rq-{b}-tables", "encode") for b in BEAMS]
        # at beam 1 faiss is as fast without its tables
        greedy = max(
            ("faiss-rq-1", "faiss-rq-1-tables"), key=lambda name: f.rate(name, "encode") or 0.0
        )
        pairs[0] = ("residual-1", greedy, "encode")
        pairs.insert(1, ("residual-1", "gemm", "encode"))
        pairs.append(("residual-5", "faiss-rq-5-tables", "decode"))
        times = [
            _ratio(f.fit("residual", unit), f.fit("faiss-rq", unit))
            for unit in ("seconds", "cpu_seconds")
        ]
        rows.append(
            [
                _title(*key),
                *(_both(_speed_ratio(f, *pair)) for pair in pairs),
                _both(times),
                _cell(_largest(f.memory(name) for name in OWN_TABLES)),
                _cell(_largest(f.memory(f"faiss-rq-{b}-tables") for b in BEAMS)),
            ]
        )
    text = (
        "Encoding and decoding: vectors a second of rqtoolkit over those of faiss with its "
        "tables. Training: our seconds over those of faiss. By the clock, and in parentheses by "
        "processor time. Memory: the most that any beam takes."
    )
    return [text, markdown_table(head, rows)]


def _speed_ratio(f: Figures, own: str, peer: str, way: str) -> list[float | None]:
    units = ("per_second", "per_cpu_second")
    return [_ratio(f.rate(own, way, unit), f.rate(peer, way, unit)) for unit in units]


Column = Callable[[Figures, str], str]


def _fit_cell(f: Figures, method: str) -> str:
    model = METHODS[method].model
    return _both([f.fit(model, "seconds"), f.fit(model, "cpu_seconds")])


COLUMNS: dict[str, Column] = {
    "method": lambda _, method: METHODS[method].title,
    "error": lambda f, method: _cell(f.error(method), "#.4g"),
    "1-recall@1": lambda f, method: _cell(f.recall(method, 1), ".3f"),
    "1-recall@10": lambda f, method: _cell(f.recall(method, 10), ".3f"),
    "encode, vectors/s": lambda f, method: _cell(f.rate(method, "encode"), ",.0f"),
    "of the GEMM": lambda f, method: _cell(
        _ratio(f.rate(method, "encode"), f.rate("gemm", "encode"))
    ),
    "decode, vectors/s": lambda f, method: _cell(f.rate(method, "decode"), ",.0f"),
    "memory, MiB": lambda f, method: _cell(f.memory(method), ",.0f"),
    "training, s (CPU)": _fit_cell,
}


def _methods(f: Figures) -> str:
    """Return a table with a row for each method that has a record."""
    rows = [
        [column(f, name) for column in COLUMNS.values()]
        for name in METHODS
        if f.error(name) is not None or f.rate(name, "encode") is not None
    ]
    return markdown_table(list(COLUMNS), rows)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _ratio(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def _cell(value: float | None, form: str | None = None) -> str:
    if value is None:
        return "–"
    return plain(value) if form is None else format(value, form)


def _both(values: Sequence[float | None]) -> str:
    """Write a figure by the clock with that by the processor behind it."""
    clock, processor = map(_cell, values)
    return "–" if clock == "–" else f"{clock} ({processor})"
