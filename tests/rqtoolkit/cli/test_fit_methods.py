"""What `fit`, `sweep` and `encode` hand to the library, and what they say of it."""

import inspect
import json

import numpy as np
import pytest
import torch
import typer

from rqtoolkit.cli.app import app
from rqtoolkit.cli.quantize import throughput
from rqtoolkit.functional.rate_distortion import distortion, entropy_per_depth, relative_error
from rqtoolkit.quantizers import (
    GroupedResidualQuantizer,
    NeuralResidualQuantizer,
    ResidualAutoencoder,
    ResidualQuantizer,
    load_quantizer,
)

QUICK = ["--lsq-rounds", 1, "--starts", 1]
SHAPE = ["--depth", 2, "--codebook-size", 8]


def test_stated_defaults_are_those_of_the_library():
    command = typer.main.get_command(app).commands["quantize"].commands["fit"]
    stated = {option.name: option.show_default for option in command.params}
    library = inspect.signature(ResidualQuantizer.fit).parameters
    names = {"lsq_rounds": "rounds", "starts": "starts"}
    for option, argument in names.items():
        assert stated[option] == str(library[argument].default)
    assert float(stated["prefix_weight"]) == library["prefix_weight"].default
    neural = inspect.signature(NeuralResidualQuantizer.fit).parameters
    rqvae = {
        name: one.default
        for function in (ResidualAutoencoder.__init__, ResidualAutoencoder.fit)
        for name, one in inspect.signature(function).parameters.items()
    }
    beams = library["beam"].default, rqvae["beam"], neural["beam"].default
    assert stated["beam"] == "{}; rqvae: {}; neural: {}".format(*beams)
    epochs = rqvae["epochs"], neural["epochs"].default
    assert stated["epochs"] == "rqvae: {}; neural: {}".format(*epochs)


def test_every_option_reaches_the_library(made, tmp_path, monkeypatch, run):
    told = {}
    fit = ResidualQuantizer.fit

    def spy(self, X, **settings):
        told.update(settings)
        return fit(self, X, rounds=0, starts=1, seed=0)

    monkeypatch.setattr(ResidualQuantizer, "fit", spy)
    options = ["--beam", 2, "--prefix-weight", 0.5, "--target-bits", 4, "--time-budget", 60]
    out = tmp_path / "m.safetensors"
    run("fit", made / "x.npy", *SHAPE, *QUICK, *options, "--seed", 3, "--out", out)
    del told["progress"]
    assert told == {
        "rounds": 1,
        "starts": 1,
        "beam": 2,
        "prefix_weight": 0.5,
        "target_bits": 4,
        "time_budget": 60,
        "max_rows": 300,
        "seed": 3,
    }


def test_threads_hold_while_a_command_works(made, tmp_path, monkeypatch, run):
    seen = []
    encode = ResidualQuantizer.encode
    monkeypatch.setattr(
        ResidualQuantizer,
        "encode",
        lambda self, x, **kw: seen.append(torch.get_num_threads()) or encode(self, x, **kw),
    )
    before = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: before + 2)
    words = ["encode", made / "model.safetensors", made / "x.npy", "--out", tmp_path / "c.npy"]
    run(*words, "--threads", before + 2)
    assert set(seen) == {before + 2}
    run(*words, "--threads", before + 1000)  # which there are no cores for
    assert set(seen) == {before + 2}
    assert torch.get_num_threads() == before


def test_grouped_equals_the_library(made, tmp_path, x, run, run_json):
    out = tmp_path / "m.safetensors"
    options = ["--method", "grouped", "--groups", 2, "--rotation", "pca", *SHAPE, *QUICK]
    run("fit", made / "x.npy", *options, "--out", out)
    peer = GroupedResidualQuantizer(6, 2, 8, groups=2, rotation="pca")
    peer.fit(x, rounds=1, starts=1, seed=0)
    peer.save(tmp_path / "peer.safetensors")
    assert out.read_bytes() == (tmp_path / "peer.safetensors").read_bytes()

    run("encode", out, made / "x.npy", "--out", tmp_path / "c.npy")
    codes = torch.from_numpy(np.load(tmp_path / "c.npy")).long()
    assert torch.equal(codes, peer.encode(torch.from_numpy(x)))
    found = run_json("evaluate", out, made / "x.npy")
    for level in (1, 2):
        expected = distortion(x, peer.decode(codes[:, : 2 * level]))
        assert found["mse_by_depth"][level - 1] == pytest.approx(expected)
    assert len(found["usage"]) == 4


def test_evaluate_shows_a_row_for_each_level_of_all_groups(made, tmp_path, run, capsys):
    out = tmp_path / "m.safetensors"
    options = ["--method", "grouped", "--groups", 3, *SHAPE, *QUICK]
    run("fit", made / "x.npy", *options, "--out", out)
    capsys.readouterr()
    run("evaluate", out, made / "x.npy")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["1", "8"], ["2", "8"]]
    assert lines[3].startswith("18 bits per vector")


def test_rqvae_equals_the_library(made, tmp_path, x, run, run_json):
    out, codes_file = tmp_path / "m.safetensors", tmp_path / "c.npy"
    options = ["--method", "rqvae", *SHAPE, "--epochs", 2, "--beam", 2, "--seed", 3]
    run("fit", made / "x.npy", *options, "--out", out)
    peer = ResidualAutoencoder(6, 2, 8, beam=2).fit(x, epochs=2, seed=3)
    peer.save(tmp_path / "peer.safetensors")
    assert out.read_bytes() == (tmp_path / "peer.safetensors").read_bytes()

    run("encode", out, made / "x.npy", "--out", codes_file)
    codes = torch.from_numpy(np.load(codes_file)).long()
    assert torch.equal(codes, peer.encode(torch.from_numpy(x)))
    run("decode", out, codes_file, "--out", tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), peer.decode(codes))
    found = run_json("evaluate", out, made / "x.npy")
    for level in (1, 2):
        expected = distortion(x, peer.decode(codes[:, :level]))
        assert found["mse_by_depth"][level - 1] == pytest.approx(expected)


def test_sweep_of_rqvae_keeps_its_own_defaults(made, tmp_path, run):
    options = ["--depths", 1, "--codebook-sizes", 4, "--method", "rqvae", "--epochs", 1]
    run("sweep", made / "x.npy", *options, "--out", tmp_path / "sweep")
    used = json.loads((tmp_path / "sweep" / "results.json").read_text())["options"]
    assert (used["method"], used["beam"], used["epochs"]) == ("rqvae", 1, 1)


@pytest.mark.slow
def test_neural_equals_the_library(made, tmp_path, x, run, run_json):
    out, codes_file = tmp_path / "m.safetensors", tmp_path / "c.npy"
    options = ["--method", "neural", *SHAPE, "--epochs", 1, "--beam", 2]
    run("fit", made / "x.npy", *options, "--out", out)
    peer = NeuralResidualQuantizer(6, 2, 8).fit(x, epochs=1, beam=2, seed=0)
    run("encode", out, made / "x.npy", "--beam", 3, "--out", codes_file)
    codes = torch.from_numpy(np.load(codes_file)).long()
    assert torch.equal(codes, peer.encode(torch.from_numpy(x), beam=3))
    run("decode", out, codes_file, "--out", tmp_path / "y.npy")
    x_hat = np.load(tmp_path / "y.npy")
    np.testing.assert_array_equal(x_hat, peer.decode(codes))
    found = run_json("evaluate", out, made / "x.npy", "--beam", 3)
    assert found["mse"] == pytest.approx(distortion(x, x_hat))


def test_warm_start_equals_the_library(made, tmp_path, x, model, run):
    out = tmp_path / "m.safetensors"
    start = made / "model.safetensors"
    run("fit", made / "x.npy", "--warm-start", start, "--lsq-rounds", 2, "--out", out)
    model.fit(x, rounds=2, warm_start=True)
    assert torch.equal(load_quantizer(out).codebooks, model.codebooks)


def test_a_grouped_quantizer_is_fitted_further(made, tmp_path, run_json):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    options = ["--method", "grouped", "--groups", 2, *SHAPE, "--lsq-rounds", 0, "--starts", 1]
    before = run_json("fit", made / "x.npy", *options, "--out", first)
    after = run_json("fit", made / "x.npy", "--warm-start", first, "--out", second)
    assert after["training"]["mse"] <= before["training"]["mse"]


def test_fit_measures_held_out_vectors(made, tmp_path, run_json):
    rng = np.random.default_rng(1)
    held_out = rng.normal(3.0, 1.0, (70, 6)).astype(np.float32)
    np.save(tmp_path / "held_out.npy", held_out)
    out = tmp_path / "m.safetensors"
    found = run_json(
        "fit", made / "x.npy", *SHAPE, *QUICK, "--held-out", tmp_path / "held_out.npy", "--out", out
    )
    quantizer = load_quantizer(out)
    codes = quantizer.encode(torch.from_numpy(held_out))
    assert found["held_out"]["rows"] == 70
    expected = relative_error(held_out, quantizer.decode(codes))
    assert found["held_out"]["relative_error"] == pytest.approx(expected)
    entropy = sum(entropy_per_depth(codes, quantizer.codebook_sizes))
    assert found["held_out"]["entropy"] == pytest.approx(entropy)
    assert found["training"]["mse"] < found["held_out"]["mse"]
    assert found["bits_per_vector"] == 6
    assert found["seconds"] > 0


def test_encode_says_how_fast_it_was(made, tmp_path, monkeypatch, run_json):
    monkeypatch.setattr(throughput, "gemm_rate", lambda dim, codewords, **_: 1e3 * dim * codewords)
    out = tmp_path / "c.npy"
    found = run_json("encode", made / "model.safetensors", made / "x.npy", "--out", out)
    assert found["rows"] == 300
    assert found["vectors_per_second"] == pytest.approx(300 / found["seconds"])
    assert found["share_of_gemm"] == pytest.approx(found["vectors_per_second"] / (6e3 * 28))


def test_gemm_rate_falls_with_the_work():
    assert throughput.gemm_rate(256, 4096) < throughput.gemm_rate(16, 256)


def test_encode_settings_reach_the_library(made, tmp_path, x, model, run):
    words = ["encode", made / "model.safetensors", made / "x.npy", "--out", tmp_path / "c.npy"]
    for options, settings in [
        (["--beam", 1], {"beam": 1}),
        (["--icm-rounds", 2], {"icm_rounds": 2}),
        (["--icm-rounds", 1, "--perturbations", 3, "--seed", 5],
         {"icm_rounds": 1, "perturbations": 3, "seed": 5}),
    ]:  # fmt: skip
        run(*words, *options)
        expected = model.encode(torch.from_numpy(x), **settings)
        np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), expected)


def test_sweep_keeps_the_options_it_used(made, tmp_path, run_json):
    out = tmp_path / "sweep"
    options = ["--depths", "1,2", "--codebook-sizes", 4, "--beam", 2, "--starts", 1]
    found = run_json(
        "sweep",
        made / "x.npy",
        *options,
        "--lsq-rounds",
        0,
        "--method",
        "grouped",
        "--groups",
        2,
        "--out",
        out,
    )
    assert [result["bits_per_vector"] for result in found] == [4, 8]
    assert found[1]["mse"] < found[0]["mse"]
    used = json.loads((out / "results.json").read_text())["options"]
    assert used["method"] == "grouped"
    assert used["groups"] == 2
    assert (used["beam"], used["rounds"], used["starts"]) == (2, 0, 1)
    assert (used["seed"], used["prefix_weight"]) == (0, 0)


BAD_CALLS = [
    ([*SHAPE, "--groups", 2], "--groups is for --method grouped; got residual"),
    ([*SHAPE, "--method", "grouped"], "needs --groups"),
    ([*SHAPE, "--method", "grouped", "--groups", 4], "groups=4 does not divide dim=6"),
    (["--depth", 2], "fit needs --depth and --codebook-size"),
    ([*SHAPE, "--warm-start", "{model}"], "--depth is settled by --warm-start"),
    (["--warm-start", "{model}", "--shared-codebook"], "--shared-codebook is settled"),
    (["--warm-start", "{model}", "--method", "residual"], "--method is settled"),
    (["--warm-start", "{tmp}/none"], "does not exist"),
    ([*SHAPE, "--epochs", 2], "--epochs is for --method rqvae or neural"),
    ([*SHAPE, "--method", "neural", "--starts", 2], "--starts is for --method residual or grouped"),
    ([*SHAPE, "--method", "rqvae", "--shared-codebook"], "--shared-codebook is for --method res"),
    (["--warm-start", "{tmp}/neural.safetensors"], "starts afresh"),
    (["--warm-start", "{tmp}/rqvae.safetensors"], "starts afresh"),
    ([*SHAPE, "--held-out", "{tmp}/dim5.npy"], "dimension 5"),
    ([*SHAPE, "--rate-weight", 1, "--target-bits", 5], "in two ways"),
    ([*SHAPE, "--prefix-weight", -1], "prefix_weight=-1"),
    ([*SHAPE, "--time-budget", 0], "time_budget=0"),
]


@pytest.mark.parametrize(("words", "message"), BAD_CALLS, ids=[case[1] for case in BAD_CALLS])
def test_bad_fits(made, tmp_path, refused, words, message):
    np.save(tmp_path / "dim5.npy", np.ones((9, 5)))
    NeuralResidualQuantizer(6, 1, 4).save(tmp_path / "neural.safetensors")
    ResidualAutoencoder(6, 1, 4).save(tmp_path / "rqvae.safetensors")
    places = {"model": made / "model.safetensors", "tmp": tmp_path}
    words = [str(word).format(**places) for word in words]
    refused(["fit", made / "x.npy", *words, "--out", tmp_path / "m.safetensors"], message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "{neural}", "{x}", "--icm-rounds", 2], "--icm-rounds is nothing that a Neural"),
        (["export", "{neural}"], "faiss has no index of that kind"),
        (["export", "{rqvae}"], "faiss has no index of that kind"),
    ],
)
def test_what_quantizers_with_networks_do_not_do(made, tmp_path, refused, words, message):
    NeuralResidualQuantizer(6, 1, 4).save(tmp_path / "neural.safetensors")
    ResidualAutoencoder(6, 1, 4).save(tmp_path / "rqvae.safetensors")
    places = {name: tmp_path / f"{name}.safetensors" for name in ("neural", "rqvae")}
    places["x"] = made / "x.npy"
    words = [str(word).format(**places) for word in words]
    refused([*words, "--out", tmp_path / "out.npy"], message)


def test_a_target_rate_is_met_by_the_compressed_codes(tmp_path, run_json):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4000, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    model, shape = tmp_path / "m.safetensors", ["--depth", 2, "--codebook-size", 16]
    found = run_json(
        "fit", tmp_path / "x.npy", *shape, "--starts", 1, "--target-bits", 5, "--out", model
    )
    assert found["training"]["entropy"] < 5.6  # nearly 8 without a rate
    measured = run_json("evaluate", model, tmp_path / "x.npy")
    assert measured["compressed_bits_per_vector"] < 5.6
