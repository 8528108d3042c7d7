"""Packed rows, compressed files, and every command that reads them."""

from importlib import import_module

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rqtoolkit.cli.quantize import streams
from rqtoolkit.functional.codes import pack_codes
from rqtoolkit.quantizers import ResidualQuantizer

SIZES = [16, 8, 4]


@pytest.fixture(params=["whole", "in chunks"])
def chunks(request, monkeypatch):
    if request.param == "in chunks":
        monkeypatch.setattr(streams, "_CHUNK_ELEMENTS", 17 * (6 + 2 * 3))
        monkeypatch.setattr(import_module("rqtoolkit.cli.quantize.compress"), "_ROWS", 17)


@pytest.mark.usefixtures("chunks")
def test_packed_rows_there_and_back(made, tmp_path, x, model, run):
    run(
        "encode",
        made / "model.safetensors",
        made / "x.npy",
        "--packed",
        "--out",
        tmp_path / "p.npy",
    )
    packed = np.load(tmp_path / "p.npy")
    codes = model.encode(torch.from_numpy(x))
    np.testing.assert_array_equal(packed, pack_codes(codes, SIZES))
    run("decode", made / "model.safetensors", tmp_path / "p.npy", "--packed",
        "--out", tmp_path / "y.npy")  # fmt: skip
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model.decode(codes))


def test_packed_rows_keep_ids(made, tmp_path, model, run):
    words = ["--packed", "--id-column", "item"]
    codes, back = tmp_path / "p.parquet", tmp_path / "y.parquet"
    run("encode", made / "model.safetensors", made / "x.parquet", "--column", "embedding",
        *words, "--out", codes)  # fmt: skip
    assert pq.read_schema(codes).field("codes").type.list_size == 2
    run("decode", made / "model.safetensors", codes, *words, "--out", back)
    table = pq.read_table(back)
    assert table["item"].to_pylist() == [f"item {row}" for row in range(300)]
    expected = model.decode(torch.from_numpy(np.load(made / "codes.npy")).long())
    np.testing.assert_array_equal(np.stack(table["vectors"].to_pandas()), expected)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("by_model", [True, False])
def test_compressed_codes_come_back(made, tmp_path, run, run_json, by_model):
    out, back = tmp_path / "c.rqcodes", tmp_path / "c.npy"
    words = ["--model", made / "model.safetensors"] if by_model else []
    found = run_json("compress", made / "codes.npy", *words, "--out", out)
    run("decompress", out, "--out", back)
    assert back.read_bytes() == (made / "codes.npy").read_bytes()
    assert found["bytes"] == out.stat().st_size
    assert found["bits_per_vector"] == pytest.approx(8 * found["bytes"] / 300)
    assert found["fixed_length_bits"] == 9
    assert 8 * found["bytes"] <= 1.02 * 300 * found["model_entropy"] + 8 * 16


def test_codes_used_unequally_take_fewer_bits(tmp_path, run_json):
    codes = np.random.default_rng(0).geometric(0.5, (5000, 3)).clip(max=8) - 1
    np.save(tmp_path / "c.npy", codes)
    found = run_json("compress", tmp_path / "c.npy", "--out", tmp_path / "c.rqcodes")
    odds = np.append(0.5 ** np.arange(1, 8), 0.5**7)
    entropy = -3 * (odds * np.log2(odds)).sum()
    assert found["fixed_length_bits"] == 9
    assert entropy * 0.98 < found["bits_per_vector"] < entropy * 1.03


def test_packed_and_parquet_are_compressed_alike(made, tmp_path, run):
    model, results = made / "model.safetensors", []
    run("encode", model, made / "x.npy", "--out", tmp_path / "c.parquet")
    run("encode", model, made / "x.npy", "--packed", "--out", tmp_path / "p.npy")
    for name, words in [("c.parquet", []), ("p.npy", ["--packed"])]:
        out = tmp_path / f"{name}.rqcodes"
        run("compress", tmp_path / name, "--model", model, *words, "--out", out)
        results.append(out.read_bytes())
    assert results[0] == results[1]
    run("decompress", out, "--packed", "--out", tmp_path / "q.npy")
    assert (tmp_path / "q.npy").read_bytes() == (tmp_path / "p.npy").read_bytes()


@pytest.mark.usefixtures("chunks")
def test_decode_reads_compressed_codes(made, tmp_path, run):
    np.save(tmp_path / "short.npy", np.load(made / "codes.npy")[:, :2])
    model = made / "model.safetensors"
    for codes in (made / "codes.npy", tmp_path / "short.npy"):
        run("compress", codes, "--out", tmp_path / "c.rqcodes")
        run("decode", model, codes, "--out", tmp_path / "a.npy")
        run("decode", model, tmp_path / "c.rqcodes", "--out", tmp_path / "b.npy")
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


BAD_CALLS = [
    (["compress", "{made}/codes.npy", "--out", "{tmp}/c.npy"], ".rqcodes"),
    (["compress", "{made}/codes.npy", "--packed", "--out", "{tmp}/c.rqcodes"], "needs --model"),
    (["compress", "{made}/x.npy", "--out", "{tmp}/c.rqcodes"], "float32"),
    (["compress", "{tmp}/none.npy", "--out", "{tmp}/c.rqcodes"], "does not exist"),
    (["compress", "{tmp}/negative.npy", "--out", "{tmp}/c.rqcodes"], "got -1"),
    (["compress", "{tmp}/large.npy", "--model", "{model}", "--out", "{tmp}/c.rqcodes"], "below 8"),
    (["compress", "{tmp}/huge.npy", "--out", "{tmp}/c.rqcodes"], "at most 65536"),
    (["decompress", "{made}/codes.npy", "--out", "{tmp}/c.npy"], "no compressed file"),
    (["decompress", "{tmp}/none.rqcodes", "--out", "{tmp}/c.npy"], "is no file"),
    (["decompress", "{tmp}/cut.rqcodes", "--out", "{tmp}/c.npy"], "damaged or truncated"),
    (["decompress", "{tmp}/good.rqcodes", "--out", "{tmp}/c.csv"], ".parquet"),
    (["decompress", "{tmp}/good.rqcodes", "--out", "{tmp}/good.rqcodes"], "also an input"),
    (["decode", "{model}", "{tmp}/good.rqcodes", "--packed", "--out", "{tmp}/y.npy"], "--packed"),
    (["decode", "{model}", "{made}/codes.npy", "--packed", "--out", "{tmp}/y.npy"], "(N, 2)"),
    (["decode", "{tmp}/small.safetensors", "{tmp}/good.rqcodes", "--out", "{tmp}/y.npy"], "depth"),
    (
        ["encode", "{tmp}/single.safetensors", "{made}/x.npy", "--packed", "--out", "{tmp}/c.npy"],
        "no bits to pack",
    ),
]


@pytest.mark.parametrize(("words", "message"), BAD_CALLS, ids=[case[1] for case in BAD_CALLS])
def test_bad_calls_of_code_commands(made, tmp_path, run, refused, words, message):
    np.save(tmp_path / "negative.npy", np.array([[0, -1, 0]]))
    np.save(tmp_path / "large.npy", np.array([[0, 8, 0]]))
    np.save(tmp_path / "huge.npy", np.array([[0, 70_000, 0]]))
    run("compress", made / "codes.npy", "--out", tmp_path / "good.rqcodes")
    good = (tmp_path / "good.rqcodes").read_bytes()
    (tmp_path / "cut.rqcodes").write_bytes(good[:-9])
    ResidualQuantizer(6, 1, 16).save(tmp_path / "small.safetensors")
    ResidualQuantizer(6, 1, 1).save(tmp_path / "single.safetensors")
    places = {"made": made, "tmp": tmp_path, "model": made / "model.safetensors"}
    refused([word.format(**places) for word in words], message)
