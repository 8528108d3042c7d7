import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from rqtoolkit.cli.app import app, main
from rqtoolkit.cli.quantize import streams, training
from rqtoolkit.functional.rate_distortion import (
    distortion,
    entropy_per_depth,
    perplexity,
    relative_error,
    usage,
)
from rqtoolkit.quantizers import ResidualQuantizer

ROWS, DIM = 300, 6
QUICK = ["--lsq-rounds", "1", "--starts", "1"]


def run(*words: object) -> None:
    assert main(["quantize", *map(str, words)]) == 0


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fit_writes_what_the_library_fits(x, model):
    assert model.codebook_sizes == (16, 8, 4)
    assert model.beam == 5
    peer = ResidualQuantizer(DIM, 3, [16, 8, 4]).fit(x, rounds=1, starts=1, seed=0)
    assert torch.equal(peer.codebooks, model.codebooks)


def test_fit_is_fixed_by_its_seed(made, tmp_path, capsys):
    options = ["--depth", 2, "--codebook-size", 8, "--beam", 1, *QUICK]
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        out = tmp_path / f"{name}.safetensors"
        run("fit", made / "x.npy", *options, "--seed", seed, "--out", out)
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    out, error = capsys.readouterr()
    assert out.split()[:3] == ["data", "rows", "mse"]
    assert error.splitlines()[0] == f"Wrote {tmp_path / 'a.safetensors'}"


def test_fit_reads_at_most_train_rows(made, tmp_path, monkeypatch):
    taken = []
    fit = ResidualQuantizer.fit
    monkeypatch.setattr(
        ResidualQuantizer, "fit", lambda self, X, **kw: taken.append(len(X)) or fit(self, X, **kw)
    )
    options = ["--depth", 1, "--codebook-size", 4, *QUICK, "--train-rows", 40]
    for data in ("x.npy", "x.parquet"):
        run("fit", made / data, *options, "--out", tmp_path / "m.safetensors")
    assert taken == [40, 40]


def test_fit_says_when_it_does_not_read_all(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(training._TRAIN_ROWS_PER_CODE, "residual", 10)
    out = tmp_path / "m.safetensors"
    run("fit", made / "x.npy", "--depth", 1, "--codebook-size", 4, *QUICK, "--out", out)
    assert "Fitting on 40 of 300 vectors" in capsys.readouterr().err


def test_fit_with_a_shared_codebook(made, tmp_path):
    out = tmp_path / "m.safetensors"
    options = ["--depth", 3, "--codebook-size", 8, "--shared-codebook", *QUICK]
    run("fit", made / "two.npz", "--key", "train", *options, "--out", out)
    assert ResidualQuantizer.load(out).codebooks.shape == (1, 8, DIM)


def test_encode_writes_what_the_library_encodes(made, x, model):
    codes = np.load(made / "codes.npy")
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, model.encode(torch.from_numpy(x)))


def test_chunks_do_not_change_the_codes(made, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "_CHUNK_ELEMENTS", 17 * DIM * 4)
    run("encode", made / "model.safetensors", made / "x.npy", "--out", tmp_path / "codes.npy")
    assert (tmp_path / "codes.npy").read_bytes() == (made / "codes.npy").read_bytes()


def test_parquet_keeps_ids_there_and_back(made, tmp_path, model, monkeypatch):
    monkeypatch.setattr(streams, "_CHUNK_ELEMENTS", 17 * DIM * 4)
    model_path, codes, back = (
        made / "model.safetensors",
        tmp_path / "c.parquet",
        tmp_path / "x.parquet",
    )
    ids = ["--id-column", "item"]
    run("encode", model_path, made / "x.parquet", "--out", codes, "--column", "embedding", *ids)
    run("decode", model_path, codes, "--out", back, *ids)
    expected = np.load(made / "codes.npy")
    table = pq.read_table(codes)
    assert table.column_names == ["item", "codes"]
    np.testing.assert_array_equal(np.stack(table["codes"].to_pandas()), expected)
    table = pq.read_table(back)
    assert table["item"].to_pylist() == [f"item {row}" for row in range(ROWS)]
    np.testing.assert_array_equal(
        np.stack(table["vectors"].to_pandas()), model.decode(torch.from_numpy(expected).long())
    )


@pytest.mark.parametrize("depth", [1, 3])
def test_decode_takes_any_prefix(made, tmp_path, model, depth):
    codes = np.load(made / "codes.npy")[:, :depth]
    np.save(tmp_path / "codes.npy", codes)
    run("decode", made / "model.safetensors", tmp_path / "codes.npy", "--out", tmp_path / "y.npy")
    expected = model.decode(torch.from_numpy(codes).long())
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def test_evaluate_equals_the_functions_on_the_whole(made, x, model, monkeypatch, capsys):
    monkeypatch.setattr(streams, "_CHUNK_ELEMENTS", 17 * DIM * 4)
    capsys.readouterr()
    run("evaluate", made / "model.safetensors", made / "x.npy", "--json")
    out, error = capsys.readouterr()
    assert error == ""
    found = json.loads(out)
    codes = torch.from_numpy(np.load(made / "codes.npy")).long()
    x_hat = model.decode(codes)
    assert found["mse"] == pytest.approx(distortion(x, x_hat))
    assert found["relative_error"] == pytest.approx(relative_error(x, x_hat))
    assert found["bits_per_vector"] == 4 + 3 + 2
    assert found["usage"] == usage(codes, model.codebook_sizes)
    assert found["entropy"] == pytest.approx(entropy_per_depth(codes, model.codebook_sizes))
    assert found["perplexity"] == pytest.approx(perplexity(codes, model.codebook_sizes))
    for depth in (1, 2, 3):
        expected = distortion(x, model.decode(codes[:, :depth]))
        assert found["mse_by_depth"][depth - 1] == pytest.approx(expected)


def test_evaluate_shows_a_row_for_each_depth(made, capsys):
    capsys.readouterr()
    run("evaluate", made / "model.safetensors", made / "two.npz", "--key", "test")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["1", "16"], ["2", "8"], ["3", "4"]]
    assert lines[4] == "9 bits per vector, 50 vectors of dimension 6"


def test_sweep(made, tmp_path, capsys):
    out = tmp_path / "new" / "sweep"
    options = ["--depths", "1-3", "--codebook-sizes", "4,8", "--out", out, "--lsq-rounds", 2]
    capsys.readouterr()
    run("sweep", made / "x.npy", *options)
    first = files(out)
    assert {path.name for path in first} == {"results.json", "rate_distortion.png"}
    shown = capsys.readouterr().out.splitlines()
    report = json.loads((out / "results.json").read_text())
    assert len(report["results"]) == len(shown) - 1 == 6
    assert report["variance"] == pytest.approx(np.load(made / "x.npy").var(axis=0).sum(), rel=1e-5)
    for size in (4, 8):
        line = [result for result in report["results"] if result["codebook_size"] == size]
        assert [result["depth"] for result in line] == [1, 2, 3]
        for name in ("mse", "relative_error", "gaussian_mse"):
            values = [result[name] for result in line]
            assert values == sorted(values, reverse=True)
        assert all(result["gaussian_mse"] < result["mse"] for result in line)
    run("sweep", made / "x.npy", *options)
    assert files(out) == first


BAD_DATA = {
    "nan.npy": (lambda path, x: np.save(path, np.where(x > 5, np.nan, x)), "nan in row"),
    "inf.npy": (lambda path, x: np.save(path, np.where(x > 5, np.inf, x)), "inf in row"),
    "object.npy": (lambda path, x: np.save(path, x.astype(object)), "dtype object"),
    "text.npy": (lambda path, x: np.save(path, x.astype(str)), "dtype <U"),
    "bool.npy": (lambda path, x: np.save(path, x > 0), "dtype bool"),
    "one.npy": (lambda path, x: np.save(path, x[0]), "got shape (6,)"),
    "three.npy": (lambda path, x: np.save(path, x[None]), "got shape (1, 300, 6)"),
    "none.npy": (lambda path, x: np.save(path, x[:0]), "is empty"),
    "bytes.npy": (lambda path, x: path.write_bytes(b""), "not a readable"),  # noqa: ARG005
    "foreign.npy": (lambda path, x: path.write_bytes(b"GIF89a" * 99), "not a readable"),  # noqa: ARG005
    "foreign.parquet": (lambda path, x: path.write_bytes(b"GIF89a" * 99), "not a readable"),  # noqa: ARG005
    "cut.npy": (
        lambda path, x: (np.save(path, x), path.write_bytes(path.read_bytes()[:999])), "truncated",
    ),
    "folder.npy": (lambda path, x: path.mkdir(), "is a folder"),  # noqa: ARG005
    "missing.npy": (lambda path, x: None, "does not exist"),  # noqa: ARG005
    "table.csv": (lambda path, x: path.write_text("1,2"), "has to end in"),  # noqa: ARG005
}  # fmt: skip


@pytest.mark.parametrize("command", ["fit", "encode", "evaluate", "sweep"])
@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(made, tmp_path, x, refused, command, name):
    make, words = BAD_DATA[name]
    data = tmp_path / name
    make(data, x)
    model = made / "model.safetensors"
    arguments = {
        "fit": [data, "--depth", 2, "--codebook-size", 4, "--out", tmp_path / "m.safetensors"],
        "encode": [model, data, "--out", tmp_path / "codes.npy"],
        "evaluate": [model, data, "--json"],
        "sweep": [data, "--depths", 1, "--codebook-sizes", 4, "--out", tmp_path / "sweep"],
    }[command]
    refused([command, *arguments], words)


FIT = ["fit", "{made}/x.npy", "--depth", "2", "--out", "{tmp}/m.safetensors"]
BAD_CALLS = [
    ([*FIT, "--codebook-size", "301"], "300"),
    ([*FIT, "--codebook-size", "64", "--train-rows", "20"], "20"),
    ([*FIT, "--codebook-size", "16,8,4"], "depth=2"),
    ([*FIT, "--codebook-size", "16,8", "--shared-codebook"], "shared"),
    ([*FIT, "--codebook-size", "5000000000"], "fewer than the 5000000000"),
    ([*FIT, "--codebook-size", "4", "--out", "/proc/m.safetensors"], "cannot be written"),
    ([*FIT, "--codebook-size", "4", "--out", "{tmp}/" + 235 * "m" + ".safetensors"], "too long"),
    (["sweep", "{made}/x.npy", "--depths", "1-10000000000", "--out", "{tmp}/s"], "spans over"),
    ([*FIT, "--codebook-size", "big"], "--codebook-size=big"),
    ([*FIT, "--codebook-size", "0"], "from 1 on"),
    ([*FIT, "--codebook-size", "4", "--key", "a"], "no array 'a', as .npz"),
    ([*FIT, "--codebook-size", "4", "--out", "{tmp}/no/m.safetensors"], "no folder"),
    ([*FIT, "--codebook-size", "4", "--out", "{tmp}/m.npy"], ".safetensors"),
    ([*FIT, "--codebook-size", "4", "--out", "{tmp}"], "is a folder"),
    (["fit", "{made}/two.npz", *FIT[2:], "--codebook-size", "4"], "train, test"),
    (["fit", "{made}/two.npz", *FIT[2:], "--codebook-size", "4", "--key", "b"], "no array 'b'"),
    (["fit", "{made}/x.parquet", *FIT[2:], "--codebook-size", "4", "--column", "b"], "column 'b'"),
    (["encode", "{model}", "{tmp}/dim5.npy", "--out", "{tmp}/c.npy"], "dimension 5"),
    (["evaluate", "{model}", "{tmp}/dim5.npy"], "dimension 5"),
    (["encode", "{model}", "{made}/x.npy", "--out", "{tmp}/c.csv"], ".parquet"),
    (["encode", "{model}", "{made}/x.npy", "--out", "{made}/x.npy"], "an input"),
    (["encode", "{made}/none", "{made}/x.npy", "--out", "{tmp}/c.npy"], "does not exist"),
    (["encode", "{made}/x.npy", "{made}/x.npy", "--out", "{tmp}/c.npy"], "not a readable"),
    (
        ["encode", "{model}", "{made}/x.parquet", "--out", "{tmp}/c.npy",
         "--id-column", "item"], "Name a .parquet",
    ),
    (
        ["encode", "{model}", "{made}/x.parquet", "--out", "{tmp}/c.parquet",
         "--id-column", "price"], "no column 'price'",
    ),
    (
        ["encode", "{model}", "{tmp}/named.parquet", "--out", "{tmp}/c.parquet",
         "--column", "x", "--id-column", "codes"], "Rename the column",
    ),
    (["decode", "{model}", "{tmp}/large.npy", "--out", "{tmp}/y.npy"], "below 8"),
    (["decode", "{model}", "{tmp}/negative.npy", "--out", "{tmp}/y.npy"], "got -1"),
    (["decode", "{model}", "{tmp}/deep.npy", "--out", "{tmp}/y.npy"], "depth 5"),
    (["decode", "{model}", "{tmp}/flat.npy", "--out", "{tmp}/y.npy"], "two axes"),
    (["decode", "{model}", "{made}/x.npy", "--out", "{tmp}/y.npy"], "float32"),
    (["decode", "{model}", "{tmp}/no.npy", "--out", "{tmp}/y.npy"], "does not exist"),
    (["sweep", "{made}/x.npy", "--depths", "3-1", "--out", "{tmp}/s"], "--depths=3-1"),
    (["sweep", "{made}/x.npy", "--codebook-sizes", "301", "--out", "{tmp}/s"], "fewer than"),
    (["sweep", "{made}/x.npy", "--codebook-sizes", "4", "--out", "{tmp}/dim5.npy/s"], "is a file"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD_CALLS, ids=[case[1] for case in BAD_CALLS])
def test_bad_calls(made, tmp_path, refused, words, message):
    np.save(tmp_path / "dim5.npy", np.ones((9, 5)))
    np.save(tmp_path / "large.npy", np.array([[0, 0, 0], [0, 8, 0]]))
    np.save(tmp_path / "negative.npy", np.array([[0, -1, 0]]))
    np.save(tmp_path / "deep.npy", np.zeros((4, 5), int))
    np.save(tmp_path / "flat.npy", np.zeros(4, int))
    lists = pa.array(list(np.load(made / "x.npy")[:3]))
    pq.write_table(pa.table({"codes": [1, 2, 3], "x": lists}), tmp_path / "named.parquet")
    words = [
        word.format(made=made, tmp=tmp_path, model=made / "model.safetensors") for word in words
    ]
    kept = files(made)
    refused(words, message)
    assert files(made) == kept


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_ctrl_c_leaves_nothing(made, tmp_path, monkeypatch, method):
    calls = []

    def interrupt(self, *_, **__):
        calls.append(self)
        if len(calls) > 2:
            raise KeyboardInterrupt
        width = {"encode": 3, "decode": DIM}[method]
        return torch.zeros(17, width, dtype=torch.int64)

    monkeypatch.setattr(streams, "_CHUNK_ELEMENTS", 17 * DIM * 4)
    monkeypatch.setattr(ResidualQuantizer, method, interrupt)
    source = made / {"encode": "x.npy", "decode": "codes.npy"}[method]
    for suffix in ("npy", "parquet"):
        calls.clear()
        out = tmp_path / f"out.{suffix}"
        arguments = ["quantize", method, made / "model.safetensors", source, "--out", out]
        assert main([str(word) for word in arguments]) == 130
        assert list(tmp_path.iterdir()) == []


def test_runs_under_typers_own_runner(made):
    result = CliRunner().invoke(
        app, ["quantize", "evaluate", f"{made}/model.safetensors", f"{made}/x.npy", "--json"]
    )
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == ROWS


def start(*words: object) -> subprocess.Popen:
    # Where the tests run in the background of a shell, Ctrl-C is ignored, here and in children.
    lines = (
        "import signal, sys",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "from rqtoolkit.cli.app import main",
        "sys.exit(main())",
    )
    command = [sys.executable, "-c", "; ".join(lines)]
    return subprocess.Popen(
        [*command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_every_command_as_a_process(made, tmp_path):
    model, codes = tmp_path / "m.safetensors", tmp_path / "c.parquet"
    data = made / "x.npy"
    options = ["--depth", 2, "--codebook-size", 8, *QUICK]
    for words in (
        ["fit", data, *options, "--out", model],
        ["encode", model, data, "--out", codes],
        ["decode", model, codes, "--out", tmp_path / "y.npy"],
        ["evaluate", model, data, "--json"],
        ["sweep", data, "--depths", "1,2", "--codebook-sizes", 4, *QUICK, "--out", tmp_path / "s"],
    ):
        process = start("quantize", *words)
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert "Warning" not in error
        if "--json" in words:
            assert json.loads(out)["dim"] == DIM
            assert error == ""
    assert np.load(tmp_path / "y.npy").shape == (ROWS, DIM)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_process_leaves_nothing(tmp_path, number, code):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20_000, 64)))
    out = tmp_path / "m.safetensors"
    sizes = ["--depth", 8, "--codebook-size", 1024, "--starts", 50]
    process = start("quantize", "fit", tmp_path / "x.npy", *sizes, "--out", out)
    time.sleep(8)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.slow
def test_item_embeddings_reach_the_stated_error(shared_data, tmp_path, capsys):
    data = shared_data("data/recsys/beauty/item_embeddings.npy")
    for seed in range(5):
        out = tmp_path / "m.safetensors"
        run("fit", data, "--depth", 3, "--codebook-size", 256, "--seed", seed, "--out", out)
        assert float(capsys.readouterr().out.split()[9]) <= 0.306
