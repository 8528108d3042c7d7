"""Peak memory of encoding, measured in a process of its own, as one process keeps what it frees.

python -m benchmarks.quantize.memory MODEL VECTORS.npy METHOD ROWS THREADS
"""

import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.quantize.models import load_model
from benchmarks.quantize.plan import METHODS
from benchmarks.records import ROOT
from rqtoolkit.functional.threads import limited_threads

__all__ = ["measure_memory"]

WARM_UP = 2**14  # rows, enough for what is compiled to be loaded


def measure_memory(
    model: Path, vectors: Path, method: str, *, rows: int, threads: int
) -> dict[str, int]:
    """Return what encoding takes at its peak in a fresh process.

    Args:
        model: File of the fitted quantizer.
        vectors: Matrix, .npy, whose rows are repeated.
        method: A key of `METHODS`.
        rows: Vectors to encode.
        threads: Of all libraries.

    Returns:
        `extra_bytes` beyond libraries, model, input and output.
    """
    arguments = [str(model), str(vectors), method, str(rows), str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quantize.memory", *arguments],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _peak_of(model: Path, vectors: Path, method: str, rows: int, threads: int) -> int:
    own = np.load(vectors)
    x = np.resize(own, (rows, own.shape[1]))
    with limited_threads(threads):
        codec = load_model(model).codec(**METHODS[method].settings)
        codec.encode(x[:WARM_UP])
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
        before = _kilobytes("VmRSS")
        codes = codec.encode(x)
    return max(0, 1024 * (_kilobytes("VmHWM") - before) - codes.nbytes)


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    model, vectors, method, rows, threads = sys.argv[1:]
    extra = _peak_of(Path(model), Path(vectors), method, int(rows), int(threads))
    print(json.dumps({"extra_bytes": extra}))
