"""`export`, `import` and `evaluate --queries`, against brute force and faiss itself."""

import faiss
import numpy as np
import pytest
import torch

from rqtoolkit.cli.quantize import filling, streams
from rqtoolkit.quantizers import ResidualQuantizer, load_quantizer

QUERIES = np.random.default_rng(5).normal(3.0, 1.0, (20, 6)).astype(np.float32)


def scores(base: np.ndarray, metric: str) -> np.ndarray:
    """Return what a search ranks by, the smaller the better, shape (Q, N)."""
    q, y = QUERIES.astype(np.float64), np.asarray(base, np.float64)
    return -(q @ y.T) if metric == "ip" else np.square(q[:, None] - y).sum(axis=2)


@pytest.mark.parametrize("chunk", [10**6, 17])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_an_exported_index_finds_what_brute_force_finds(
    made, tmp_path, x, model, run, monkeypatch, chunk, metric
):
    monkeypatch.setattr(streams, "_CHUNK_ELEMENTS", chunk * 12)
    out = tmp_path / "index.faiss"
    words = ["export", made / "model.safetensors", "--to", "faiss", "--metric", metric]
    run(*words, "--vectors", made / "x.npy", "--out", out)
    index = faiss.read_index(str(out))
    assert index.ntotal == 300
    expected = scores(model.decode(model.encode(torch.from_numpy(x))).numpy(), metric)
    distances, found = index.search(QUERIES, 5)
    sign = -1 if metric == "ip" else 1
    np.testing.assert_allclose(sign * distances, np.sort(expected)[:, :5], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        np.take_along_axis(expected, found, 1), np.sort(expected)[:, :5], rtol=1e-4, atol=1e-4
    )


def test_codes_make_the_same_index_as_their_vectors(made, tmp_path, run):
    model, made_of = made / "model.safetensors", []
    run("encode", model, made / "x.npy", "--packed", "--out", tmp_path / "p.npy")
    run("compress", made / "codes.npy", "--out", tmp_path / "c.rqcodes")
    for words in (
        ["--vectors", made / "x.npy"],
        ["--codes", made / "codes.npy"],
        ["--codes", tmp_path / "p.npy", "--packed"],
        ["--codes", tmp_path / "c.rqcodes"],
    ):
        run("export", model, *words, "--norms", "--out", tmp_path / "index.faiss")
        made_of.append((tmp_path / "index.faiss").read_bytes())
    assert len(set(made_of)) == 1


@pytest.mark.parametrize("source", ["vectors", "codes"])
def test_lists_hold_everything_once(made, tmp_path, x, model, run_json, monkeypatch, source):
    monkeypatch.setattr(filling, "_ROWS_PER_LIST", 20)
    monkeypatch.setattr(streams, "_CHUNK_ELEMENTS", 17 * 12)
    out = tmp_path / "index.faiss"
    path = made / {"vectors": "x.npy", "codes": "codes.npy"}[source]
    words = ["export", made / "model.safetensors", f"--{source}", path, "--lists", 7]
    figures = run_json(*words, "--out", out)
    assert figures["index"] == "IndexIVFResidualQuantizer"
    assert figures["rows"] == 300
    assert figures["bytes"] == out.stat().st_size
    index = faiss.read_index(str(out))
    assert index.nlist == 7
    index.nprobe = 7
    expected = np.sort(scores(model.decode(model.encode(torch.from_numpy(x))).numpy(), "l2"))
    np.testing.assert_allclose(index.search(QUERIES, 5)[0], expected[:, :5], rtol=1e-4, atol=1e-4)


def test_a_model_alone_makes_an_empty_index(made, tmp_path, run_json):
    out = tmp_path / "index.faiss"
    assert run_json("export", made / "model.safetensors", "--out", out)["rows"] == 0
    assert faiss.read_index(str(out)).is_trained


def test_import_brings_what_faiss_trained(tmp_path, x, made, run, run_json):
    index = faiss.IndexResidualQuantizer(6, 3, 4)
    index.train(x)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    out = tmp_path / "m.safetensors"
    figures = run_json("import", tmp_path / "index.faiss", "--out", out)
    assert figures["codebook_sizes"] == [16, 16, 16]
    assert (figures["dim"], figures["depth"], figures["bits_per_vector"]) == (6, 3, 12)
    run("encode", out, made / "x.npy", "--packed", "--out", tmp_path / "p.npy")
    run("decode", out, tmp_path / "p.npy", "--packed", "--out", tmp_path / "y.npy")
    expected = index.sa_decode(np.load(tmp_path / "p.npy"))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-5)
    run("fit", made / "x.npy", "--warm-start", out, "--out", tmp_path / "further.safetensors")
    assert load_quantizer(tmp_path / "further.safetensors").codebook_sizes == (16, 16, 16)


@pytest.mark.parametrize("chunk", [10**6, 60])
def test_recall_against_brute_force(made, tmp_path, x, model, run_json, monkeypatch, chunk):
    monkeypatch.setattr(streams, "_CHUNK_ELEMENTS", chunk * 12)
    np.save(tmp_path / "q.npy", QUERIES)
    words = ["evaluate", made / "model.safetensors", made / "x.npy"]
    found = run_json(*words, "--queries", tmp_path / "q.npy", "--recall", "1,10")
    decoded = model.decode(model.encode(torch.from_numpy(x))).numpy()
    for metric in ("l2", "ip"):
        true = np.argsort(scores(x, metric), kind="stable")
        searched = np.argsort(scores(decoded, metric), kind="stable")
        for k in (1, 10):
            one = np.mean([t[0] in s[:k] for t, s in zip(true, searched, strict=True)])
            pairs = zip(true, searched, strict=True)
            common = np.mean([len(set(t[:k]) & set(s[:k])) / k for t, s in pairs])
            assert found["recall"][metric]["1-recall"][str(k)] == pytest.approx(one, abs=0.06)
            assert found["recall"][metric]["k-recall"][str(k)] == pytest.approx(common, abs=0.03)
    only = run_json(*words, "--queries", tmp_path / "q.npy", "--metric", "ip", "--recall", 3)
    assert list(only["recall"]) == ["ip"]
    assert list(only["recall"]["ip"]["1-recall"]) == ["3"]


def test_evaluate_shows_recall_and_the_compressed_size(made, tmp_path, run, run_json, capsys):
    np.save(tmp_path / "q.npy", QUERIES)
    model = made / "model.safetensors"
    file = run_json(
        "compress", made / "codes.npy", "--model", model, "--out", tmp_path / "c.rqcodes"
    )
    run("evaluate", model, made / "x.npy", "--queries", tmp_path / "q.npy")
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].startswith("9 bits per vector")
    assert lines[5] == f"{file['bits_per_vector']:.5g} bits per vector entropy-coded"
    assert lines[6].split() == ["metric", "k", "1-recall@k", "k-recall@k"]
    assert [line.split()[:2] for line in lines[7:]] == [
        [metric, k] for metric in ("l2", "ip") for k in ("1", "10", "100")
    ]


def test_evaluate_encodes_as_it_is_told(made, run_json):
    words = ["evaluate", made / "model.safetensors", made / "x.npy"]
    greedy, beam = (run_json(*words, "--beam", width)["mse"] for width in (1, 16))
    refined = run_json(*words, "--beam", 1, "--icm-rounds", 3)["mse"]
    assert beam < greedy
    assert refined < greedy


MODEL, X = "{made}/model.safetensors", "{made}/x.npy"
BAD_CALLS = [
    (["export", MODEL, "--vectors", X, "--codes", X], "two ways"),
    (["export", MODEL, "--key", "a"], "--key tells"),
    (["export", MODEL, "--vectors", X, "--packed"], "--packed tells"),
    (["export", MODEL, "--lists", "4"], "lists=4 are placed on vectors or codes"),
    (["export", MODEL, "--vectors", X, "--lists", "301"], "lists=301"),
    (["export", MODEL, "--vectors", "{tmp}/q5.npy"], "dimension 5"),
    (["export", MODEL, "--codes", "{tmp}/short.npy"], "got (300, 2)"),
    (["export", MODEL, "--norms", "--metric", "ip"], "--norms serves"),
    (["export", "{tmp}/odd.safetensors"], "no power of two"),
    (["import", X], "no readable faiss index"),
    (["import", "{tmp}/none"], "is no file"),
    (["import", "{tmp}/flat.faiss"], "residual quantizer"),
    (["evaluate", MODEL, X, "--recall", "1"], "need --queries"),
    (["evaluate", MODEL, X, "--metric", "l2"], "need --queries"),
    (["evaluate", MODEL, X, "--queries", "{tmp}/q5.npy"], "dimension 5"),
    (["evaluate", MODEL, X, "--queries", X, "--recall", "0"], "from 1 on"),
    (["evaluate", MODEL, X, "--queries", X, "--recall", "1,301"], "--recall=301"),
    (["evaluate", MODEL, X, "--queries", "{tmp}/none.npy"], "does not exist"),
]


@pytest.mark.parametrize(("words", "message"), BAD_CALLS, ids=[case[1] for case in BAD_CALLS])
def test_bad_calls_of_search_commands(made, tmp_path, refused, words, message):
    np.save(tmp_path / "q5.npy", np.ones((9, 5)))
    np.save(tmp_path / "short.npy", np.load(made / "codes.npy")[:, :2])
    ResidualQuantizer(6, 1, 12).save(tmp_path / "odd.safetensors")
    faiss.write_index(faiss.IndexFlatL2(6), str(tmp_path / "flat.faiss"))
    words = [word.format(made=made, tmp=tmp_path) for word in words]
    if words[0] != "evaluate":
        suffix = "safetensors" if words[0] == "import" else "faiss"
        words += ["--out", str(tmp_path / f"out.{suffix}")]
    refused(words, message)
