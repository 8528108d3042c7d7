"""One data set and one code: fit what has no file yet, measure what has no record yet."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.quantize.measure import measure_quality, measure_speeds
from benchmarks.quantize.memory import measure_memory
from benchmarks.quantize.models import Model, fit_model, load_model, model_suffix
from benchmarks.quantize.plan import CODES, METHODS, Method, methods_of
from benchmarks.quantize.vectors import Vectors, load_vectors
from benchmarks.records import (
    Record,
    commit,
    find,
    merge,
    processor,
    read_records,
    rounded,
    write_records,
)
from rqtoolkit.functional.threads import limited_threads
from rqtoolkit.io.atomic import atomic_path

__all__ = ["ALL", "KEYS", "Bench", "missing"]

KEYS = ("data", "code", "part", "method")
ALL = "all"
"""In place of a method in the records of speed: those of one run."""

MEMORY_ROWS = 100_000
LIBRARIES = ("torch", "numpy", "numba", "faiss-cpu", "vector-quantize-pytorch")


def missing(
    records: Sequence[Record], data: str, code: str, part: str, methods: Sequence[Method]
) -> list[str]:
    """Return names without a record: models of "fit", methods of the other parts."""
    own = find(records, data=data, code=code, part=part)
    if part == "speed":
        done = {name for record in own for name in record["measures"]["methods"]}
    else:
        done = {record["method"] for record in own}
    names = [method.model if part == "fit" else method.name for method in methods]
    return [name for name in dict.fromkeys(names) if name not in done]


@dataclass
class Bench:
    """Fits and measures for one data set and code.

    Attributes:
        data: A key of `DATA`.
        code: A key of `CODES`.
        work: Folder of fitted quantizers and decoded images.
        out: File of the records.
        rows: Rows to fit on; None for all.
        threads: Of all libraries.
        repeats: Turns of the timings.
        neural: File of a fitted neural quantizer, taken in place of fitting one.
        neural_seconds: Time budget for fitting one.
        again: Do also what has a record.
        show: Told of every record.
    """

    data: str
    code: str
    work: Path
    out: Path
    rows: int | None
    threads: int
    repeats: int
    neural: Path | None
    neural_seconds: float
    again: bool
    show: Callable[[str], object]
    _models: dict[str, Model] = field(default_factory=dict, init=False)

    @cached_property
    def vectors(self) -> Vectors:
        """The data set."""
        return load_vectors(self.data, self.work / "images", rows=self.rows)

    def run(self, methods: Sequence[Method], parts: Sequence[str]) -> None:
        """Measure what is missing of these methods, part by part."""
        for part in parts:
            records = [] if self.again else read_records(self.out)
            todo = missing(records, self.data, self.code, part, methods)
            with limited_threads(self.threads):
                if part == "speed" and todo:
                    # ratios are of one run: what was timed before is timed again
                    timed = read_records(self.out)
                    old = find(timed, data=self.data, code=self.code, part=part)
                    names = [name for record in old for name in record["measures"]["methods"]]
                    self._speed([m.name for m in methods] + names)
                for name in todo if part != "speed" else ():
                    getattr(self, f"_{part}")(name)

    def _fit(self, name: str) -> Model:
        path = self._path(name)
        if name == "neural" and self.neural is not None:
            self._models[name] = load_model(self.neural)
            return self._models[name]
        clock, processor = perf_counter(), process_time()
        model = fit_model(
            name, self.vectors.train, CODES[self.code], neural_seconds=self.neural_seconds
        )
        seconds = {"seconds": perf_counter() - clock, "cpu_seconds": process_time() - processor}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            model.save(temporary)
        self._record("fit", name, seconds | {"rows": len(self.vectors.train)})
        self._models[name] = model
        return model

    def _quality(self, name: str) -> None:
        self._record("quality", name, measure_quality(self._codec(name), self.vectors))

    def _speed(self, names: Sequence[str]) -> None:
        chosen = methods_of(names, self.code)
        codecs = {method.name: self._codec(method.name) for method in chosen}
        measures = measure_speeds(
            codecs, self.vectors.held_out, CODES[self.code], repeats=self.repeats
        )
        self._record("speed", ALL, measures | {"repeats": self.repeats})

    def _memory(self, name: str) -> None:
        vectors = self.work / "vectors" / f"{self.data}.npy"
        vectors.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(vectors) as temporary, temporary.open("wb") as file:
            np.save(file, self.vectors.held_out)
        self._model(METHODS[name].model)  # that its file is there
        path = self._path(METHODS[name].model)
        rows = MEMORY_ROWS if self.rows is None else 5 * self.rows
        taken = measure_memory(path, vectors, name, rows=rows, threads=self.threads)
        self._record("memory", name, taken | {"rows": rows})

    def _codec(self, name: str) -> Any:
        method = METHODS[name]
        return self._model(method.model).codec(**method.settings)

    def _model(self, name: str) -> Model:
        """Return a fitted quantizer: in memory, from its file, or fitted now."""
        if name not in self._models:
            path = self._path(name)
            self._models[name] = load_model(path) if path.exists() else self._fit(name)
        return self._models[name]

    def _path(self, model: str) -> Path:
        if model == "neural" and self.neural is not None:
            return self.neural
        return self.work / "fits" / f"{self.data}-{self.code}-{model}{model_suffix(model)}"

    def _record(self, part: str, method: str, measures: dict[str, Any]) -> None:
        record = {
            "data": self.data,
            "code": self.code,
            "part": part,
            "method": method,
            "commit": commit(),
            "versions": {library: version(library) for library in LIBRARIES},
            "processor": processor(),
            "threads": self.threads,
            "measures": rounded(measures),
        }
        write_records(self.out, merge(read_records(self.out), [record], KEYS))
        self.show(f"{self.data} {self.code} {part} {method}: {json.dumps(record['measures'])}")
