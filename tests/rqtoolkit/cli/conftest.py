"""Files that several tests of `rqtool quantize` start from, made once."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rqtoolkit.cli.app import main
from rqtoolkit.quantizers import ResidualQuantizer

ROWS, DIM = 300, 6


def _run(*words: object) -> None:
    assert main(["quantize", *map(str, words)]) == 0


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Return a folder with data, a model of three levels, and their codes."""
    folder = tmp_path_factory.mktemp("made")
    x = np.random.default_rng(0).normal(3.0, 1.0, (ROWS, DIM)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.savez(folder / "two.npz", train=x, test=x[:50])
    ids = [f"item {row}" for row in range(ROWS)]
    pq.write_table(pa.table({"item": ids, "embedding": list(x)}), folder / "x.parquet")
    model, data = folder / "model.safetensors", folder / "x.npy"
    shape = ["--depth", 3, "--codebook-size", "16,8,4"]
    _run("fit", data, *shape, "--lsq-rounds", 1, "--starts", 1, "--out", model)
    _run("encode", model, data, "--out", folder / "codes.npy")
    return folder


@pytest.fixture
def x(made):
    return np.load(made / "x.npy")


@pytest.fixture
def model(made):
    return ResidualQuantizer.load(made / "model.safetensors")


@pytest.fixture
def run():
    """Return a function that runs `rqtool quantize ...`, which has to succeed."""
    return _run


@pytest.fixture
def run_json(capsys):
    """Return a function that runs `rqtool quantize ... --json` and returns what it prints."""

    def run_and_read(*words: object) -> dict:
        capsys.readouterr()
        _run(*words, "--json")
        out, error = capsys.readouterr()
        assert error == ""
        return json.loads(out)

    return run_and_read


@pytest.fixture
def refused(tmp_path, capsys):
    """Return a check for exit code 2, one line on stderr, nothing on stdout, no file changed."""

    def check(words: list[object], message: str) -> None:
        before, listing = _files(tmp_path), set(tmp_path.rglob("*"))
        capsys.readouterr()
        code = main(["quantize", *map(str, words)])
        out, error = capsys.readouterr()
        assert (code, out, error.count("\n")) == (2, "", 1), error
        assert error.startswith("Error: ")
        assert message in error
        assert _files(tmp_path) == before
        assert set(tmp_path.rglob("*")) == listing

    return check


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
