"""Ways to run `rqtool`, and files that several tests of `rqtool quantize` start from, made once."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rqtoolkit.cli.app import main
from rqtoolkit.quantizers import ResidualQuantizer

ROWS, DIM = 300, 6


@pytest.fixture(scope="session")
def rqtool():
    """Return a function that runs `rqtool ...`, which has to succeed."""

    def check(*words: object) -> None:
        assert main([*map(str, words)]) == 0

    return check


@pytest.fixture
def command_group() -> str:
    """Return the group of commands that `run`, `run_json` and `refused` run."""
    return "quantize"


@pytest.fixture
def run(rqtool, command_group):
    """Return a function that runs `rqtool COMMAND ...`, which has to succeed."""
    return partial(rqtool, command_group)


@pytest.fixture(scope="session")
def made(rqtool, tmp_path_factory) -> Path:
    """Return a folder with data, a model of three levels, and their codes."""
    folder = tmp_path_factory.mktemp("made")
    x = np.random.default_rng(0).normal(3.0, 1.0, (ROWS, DIM)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.savez(folder / "two.npz", train=x, test=x[:50])
    ids = [f"item {row}" for row in range(ROWS)]
    pq.write_table(pa.table({"item": ids, "embedding": list(x)}), folder / "x.parquet")
    model, data = folder / "model.safetensors", folder / "x.npy"
    shape = ["--depth", 3, "--codebook-size", "16,8,4"]
    rqtool("quantize", "fit", data, *shape, "--lsq-rounds", 1, "--starts", 1, "--out", model)
    rqtool("quantize", "encode", model, data, "--out", folder / "codes.npy")
    return folder


@pytest.fixture
def x(made):
    return np.load(made / "x.npy")


@pytest.fixture
def model(made):
    return ResidualQuantizer.load(made / "model.safetensors")


@pytest.fixture
def run_json(run, capsys):
    """Return a function that runs `rqtool COMMAND ... --json` and returns what it prints."""

    def run_and_read(*words: object) -> dict:
        capsys.readouterr()
        run(*words, "--json")
        out, error = capsys.readouterr()
        assert error == ""
        return json.loads(out)

    return run_and_read


@pytest.fixture
def refused(command_group, tmp_path, capsys):
    """Return a check for exit code 2, one line on stderr, nothing on stdout, no file changed."""

    def check(words: list[object], message: str) -> None:
        before = _files(tmp_path)
        capsys.readouterr()
        code = main([command_group, *map(str, words)])
        out, error = capsys.readouterr()
        assert (code, out, error.count("\n")) == (2, "", 1), error
        assert error.startswith("Error: ")
        assert message in error
        assert _files(tmp_path) == before

    return check


def _files(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
