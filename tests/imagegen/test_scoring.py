"""Scoring a run: what it writes, when it refuses, and that nothing half-new is ever left."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image
from tiny_runs import TINY_MODELS
from typer.testing import CliRunner

from imagegen import scoring
from imagegen.cli import app
from imagegen.config import load_config
from imagegen.data import open_images
from imagegen.evaluate import classifier, frechet_distance
from imagegen.jobs import train_run
from imagegen.runs import Run
from imagegen.scoring import evaluate_run
from imagegen.settings import Config
from rqtoolkit.errors import ConfigError, DataError

TINY = {
    **TINY_MODELS,
    "stage1.steps": 4,
    "stage2.steps": 4,
    "sampling.top_k": 5,
}
# What the README and the demo promise.
KEYS = {
    "reconstruction_relative_error",
    "class_accuracy",
    "class_accuracy_ceiling",
    "coverage",
    "coverage_floor",
    "recall",
    "recall_floor",
    "near_copies",
    "near_copies_held_out",
    "bits_per_code",
    "unigram_bits_per_code",
    "seconds",
}


@pytest.fixture(scope="module", autouse=True)
def quick_classifier(quick_pictures):  # noqa: ARG001
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "LEAST_IMAGES", 640)
        patch.setattr(classifier, "PASSES", 1)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = load_config("digits", overrides=TINY)
    run = train_run(config, tmp_path_factory.mktemp("scoring") / "run")
    evaluate_run(run)
    return run


def npz_run(folder, x_train, x_test, **labels):
    path = folder / "images.npz"
    np.savez(path, x_train=x_train, x_test=x_test, **labels)
    overrides = {**TINY, "data.source": "npz", "data.path": str(path)}
    return train_run(load_config("digits", overrides=overrides), folder / "run")


def contents(folder):
    # The parts of samples that were drawn already may stay: the next evaluation goes on with them.
    files = (p for p in folder.rglob("*") if p.is_file() and ".unfinished" not in str(p))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_metrics_hold_the_promised_keys_and_every_figure_once(run):
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert set(metrics) >= KEYS
    assert [row["set"] for row in metrics["evaluation"]["references"]] == [
        "reconstruction",
        "class mean",
    ]
    assert not set(metrics["evaluation"]) & set(metrics)


def test_seconds_are_those_of_training_and_stay_when_scored_again(run):
    first = json.loads((run.path / "metrics.json").read_text())
    trained = {m["stage"]: m["seconds"] for m in run.metrics() if "seconds" in m}
    assert first["seconds"] >= round(sum(trained.values()), 1)
    edited = {**first, "seconds": 12345.6}
    (run.path / "metrics.json").write_text(json.dumps(edited))
    assert evaluate_run(run) == edited
    assert evaluate_run(run, since=0.0)["seconds"] != 12345.6


@pytest.mark.parametrize("where", ["render_report", "write_samples", "evaluate_samples"])
def test_an_interrupted_evaluation_leaves_the_earlier_one(run, monkeypatch, where):
    def stop(*_, **__):
        raise KeyboardInterrupt

    before = contents(run.path)
    monkeypatch.setattr(scoring, where, stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run)
    assert contents(run.path) == before


def test_an_evaluation_goes_on_with_the_samples_it_had_drawn(run, monkeypatch):
    before = contents(run.path)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "render_report", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate_run(run)
    monkeypatch.setattr("imagegen.drawing.Drawing.draw", None)  # nothing is left to draw
    evaluate_run(run)
    assert contents(run.path) == before
    assert not list(run.samples.glob(".evaluated*"))


def test_the_report_shows_settings_curves_and_what_is_special_of_the_digits(run):
    html = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<h1>Handwritten digits</h1>" in html
    for text in ("temperature 0.8, top-k 5, top-p 0.95, guidance off", "262 bits", "third split"):
        assert text in html, text
    assert "held-out loss, bits per code" in html
    assert "held-out relative error" in html


@pytest.mark.parametrize("overrides", [{}, {"seed": 5}, {"stage1.steps": 9}, {"name": "mine"}])
def test_the_command_shown_trains_the_same_configuration(tmp_path, overrides):
    config = load_config("digits", overrides=overrides)
    run = Run.create(tmp_path, config)
    words = shlex.split(scoring._commands(run)[0])
    assert words[:3] == ["rqtool", "imagegen", "train"]
    options = dict(zip(words[4::2], words[5::2], strict=True))
    seed = {"seed": int(options["--seed"])} if "--seed" in options else {}
    assert load_config(words[3].replace("RUN", str(tmp_path)), overrides=seed) == config
    assert options["--out"] == "NEW"


def test_a_path_of_data_is_quoted(tmp_path):
    path = str(tmp_path / "my images.npz")
    config = load_config("fashion_mnist", overrides={"data.path": path})
    assert isinstance(config, Config)
    command = scoring._commands(Run.create(tmp_path / "run", config))[0]
    assert shlex.split(command)[-2:] == ["--data", path]


def test_images_without_classes_are_scored_without_a_classifier(tmp_path):
    train, held_out = open_images(source="digits", resolution=8)
    run = npz_run(tmp_path, train.images[:200, ..., 0], held_out.images[:40, ..., 0])
    metrics = evaluate_run(run)
    assert len(metrics["bits_per_code"]) == 2
    assert "class_accuracy" not in metrics
    assert "no classifier" in (run.path / "report.html").read_text(encoding="utf-8")


class Pixels:
    """An extractor that sees the first pixels: fast, and its scores can be worked out."""

    name, dim, resize, sha256 = "pixels", 4, "none", "ab" * 32

    def features(self, images):
        return images.reshape(len(images), -1)[:, 20:24].astype(np.float32) / 255

    def probabilities(self, features):
        shares = features.astype(np.float64) + 1
        return shares / shares.sum(1, keepdims=True)


@pytest.fixture
def inception(monkeypatch):
    monkeypatch.setattr(scoring.Inception, "load", lambda *_: Pixels())
    return "inception.pth"


def scores_of(metrics):
    return {scores["name"]: scores for scores in metrics["scores"]}


def test_scores_through_inception_carry_their_protocols(run, inception, tmp_path):
    metrics = evaluate_run(run, inception=inception, save=tmp_path / "train.safetensors")
    scores = scores_of(metrics)
    assert list(scores) == ["reconstruction", "codes", "rFID", "gFID"]
    train, held_out = open_images(source="digits", resolution=8)
    rfid, gfid = scores["rFID"], scores["gFID"]
    assert rfid["protocol"]["reference"] == "held-out images"
    assert rfid["protocol"]["reference_fingerprint"] == held_out.fingerprint()
    for name in ("reconstruction", "codes"):  # the same set has one fingerprint
        assert scores[name]["protocol"]["reference_fingerprint"] == held_out.fingerprint()
    assert gfid["protocol"]["reference"] == "training images of the run"
    assert gfid["protocol"]["reference_images"] == len(train) == 1437
    assert gfid["protocol"]["images"] == 360
    assert gfid["protocol"]["sampler"]["top_k"] == 5
    assert gfid["protocol"]["extractor"] == {"name": "pixels", "sha256": "ab" * 32}
    files = sorted((run.samples / "evaluated").glob("0*.png"))
    drawn = np.stack([np.asarray(Image.open(file)) for file in files])[..., None]
    see = Pixels().features
    assert gfid["frechet_distance"] == pytest.approx(
        frechet_distance(see(train.images), see(drawn)), rel=1e-6
    )
    assert {"precision", "recall", "kernel_distance", "inception_score"} <= set(gfid)
    html = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Samples as a set (gFID)" in html
    assert "360 samples beside 1,437 training images of the run through pixels" in html
    # the statistics that were kept give the same score
    again = evaluate_run(run, inception=inception, reference=tmp_path / "train.safetensors")
    assert scores_of(again)["gFID"] == gfid


def test_given_samples_are_scored_in_place_of_drawn_ones(run, inception, tmp_path):
    _, held_out = open_images(source="digits", resolution=8)
    colour = np.repeat(held_out.images, 3, axis=3)
    np.savez(tmp_path / "samples.npz", arr_0=colour, arr_1=held_out.labels)
    folder = tmp_path / "reference"
    folder.mkdir()
    for row, image in enumerate(held_out.images[:40]):
        Image.fromarray(image[..., 0]).save(folder / f"{row}.png")
    metrics = evaluate_run(
        run, inception=inception, given=tmp_path / "samples.npz", reference=folder
    )
    gfid = scores_of(metrics)["gFID"]
    see = Pixels().features
    expected = frechet_distance(see(held_out.images[:40]), see(held_out.images))
    assert gfid["frechet_distance"] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert gfid["protocol"]["seed"] is None
    # the held-out images themselves are as good as can be
    assert metrics["frechet_distance"] == pytest.approx(0, abs=1e-8)
    assert metrics["coverage"] == 1
    assert not (run.samples / "evaluated").exists()  # an earlier evaluation's samples are others


def test_another_number_of_samples(run):
    metrics = evaluate_run(run, number=50)
    assert len(list((run.samples / "evaluated").glob("0*.png"))) == 50
    assert metrics["evaluation"]["images"] == 50
    evaluate_run(run)


def test_the_command_passes_every_option_on(run, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(scoring, "evaluate_run", lambda _, **asked: seen.update(asked) or {})
    names = ("inception", "vgg", "lpips", "reference", "save-reference", "samples")
    paths = [word for name in names for word in (f"--{name}", str(tmp_path / name))]
    result = CliRunner().invoke(app, ["evaluate", str(run.path), "--num", "7", *paths, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {}
    seen.pop("progress")
    assert seen.pop("number") == 7
    assert seen.pop("save") == tmp_path / "save-reference"
    assert seen.pop("given") == tmp_path / "samples"
    assert seen == {name: tmp_path / name for name in names[:4]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "somewhere"}, "got no inception"),
        ({"vgg": "vgg16.pth"}, "got one of them"),
        ({"number": 5, "given": "somewhere"}, "got both"),
        ({"number": 0}, "num=0 must be between"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, options, message):
    before = contents(run.path)
    with pytest.raises(ConfigError, match=message):
        evaluate_run(run, **options)
    assert contents(run.path) == before


@pytest.mark.parametrize(
    "overrides", [{}, {"autoencoder.bottleneck": "kl"}, {"autoencoder.bottleneck": "vq"}]
)
def test_a_run_without_stage_2_has_the_figures_of_stage_1(tmp_path, overrides):
    depth = {"quantizer.depth": 1} if overrides else {}
    config = load_config("digits", overrides=TINY | overrides | depth)
    run = train_run(config, tmp_path / "run", stages=(1,))
    metrics = evaluate_run(run)
    codes = overrides.get("autoencoder.bottleneck") != "kl"
    assert ("code_usage" in metrics) == codes
    assert not {"bits_per_code", "class_accuracy"} & set(metrics)
    assert len(metrics["psnr"]) == (1 if overrides else 2)
    html = (run.path / "report.html").read_text(encoding="utf-8")
    assert ("Rate and distortion" in html) == codes
    assert "<h2>Samples" not in html


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8), "more than k=5 images; got 5"),
        (np.full((9, 8, 8), 7, np.uint8), "must differ; got 9 equal"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_work(tmp_path, monkeypatch, held_out, message):
    images = open_images(source="digits", resolution=8)[0].images[:200, ..., 0]
    run = npz_run(tmp_path, images, held_out)
    monkeypatch.delattr(scoring, "own_classifier")
    monkeypatch.delattr(scoring, "draw_samples")
    with pytest.raises(DataError, match=message):
        evaluate_run(run)
    assert not (run.path / "metrics.json").exists()
