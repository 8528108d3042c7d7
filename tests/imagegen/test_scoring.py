"""Scoring a run: what it writes, when it refuses, and that nothing half-new is ever left."""

import json
import shlex

import numpy as np
import pytest

from imagegen import scoring
from imagegen.config import load_config
from imagegen.data import open_images
from imagegen.evaluate import classifier
from imagegen.jobs import train_run
from imagegen.runs import Run
from imagegen.scoring import evaluate_run
from imagegen.settings import Config
from rqtoolkit.errors import DataError

TINY = {
    "data.resolution": 8,
    "autoencoder.channels": 4,
    "autoencoder.multipliers": [1, 2],
    "autoencoder.latent_channels": 8,
    "autoencoder.code_dim": 4,
    "quantizer.depth": 2,
    "quantizer.codebook_size": 8,
    "transformer.dim": 16,
    "transformer.num_heads": 2,
    "transformer.body_layers": 1,
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
def quick_classifier():
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
    files = (path for path in folder.rglob("*") if path.is_file())
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
    monkeypatch.delattr(scoring, "train_classifier")
    monkeypatch.delattr(scoring, "draw_from_run")
    with pytest.raises(DataError, match=message):
        evaluate_run(run)
    assert not (run.path / "metrics.json").exists()
