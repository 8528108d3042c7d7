"""The commands on a tiny run: what they write, print and refuse."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_runs import TINY_MODELS
from typer.testing import CliRunner

from imagegen.cli import app
from imagegen.config import dump_config, load_config
from imagegen.data import open_images
from imagegen.evaluate import classifier
from imagegen.jobs import load_models, train_run
from imagegen.reconstruct import encode_images, reconstruct, reconstruction_errors
from imagegen.runs import Run
from imagegen.sample_jobs import draw_from_run
from imagegen.scoring import evaluate_run
from rqtoolkit.errors import ArtifactError, ConfigError, DataError

TINY = {
    **TINY_MODELS,
    "transformer.label_dropout": 0.1,
    "stage1.steps": 4,
    "stage1.batch_size": 8,
    "stage2.steps": 4,
    "stage2.batch_size": 8,
}


@pytest.fixture(scope="module", autouse=True)
def quick_classifier(quick_pictures):  # noqa: ARG001
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "LEAST_IMAGES", 640)
        patch.setattr(classifier, "PASSES", 1)
        yield


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    train_run(load_config("digits", overrides=TINY), folder)
    return folder


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_train_writes_a_run_that_resumes(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(dump_config(load_config("digits", overrides=TINY)))
    out = tmp_path / "run"
    invoke("train", config, "--out", out, "--stage", "1", "--seed", "3")
    assert Run.open(out).config.seed == 3
    with pytest.raises(ArtifactError, match=r"stage 2 .* is not finished"):
        invoke("sample", out, "--out", tmp_path / "samples")
    invoke("train", config, "--out", out, "--resume", "--seed", "3")
    assert Run.open(out).transformer_path.exists()
    with pytest.raises(ConfigError, match="Pass --resume"):
        invoke("train", config, "--out", out, "--seed", "3")


def test_sample_writes_images_codes_and_labels(run_folder, tmp_path):
    out = tmp_path / "samples"
    arguments = ("sample", run_folder, "--num", "6", "--classes", "3,7", "--seed", "1")
    invoke(*arguments, "--temperature", "0.8", "--top-k", "4", "--top-p", "0.9", "--out", out)
    assert np.load(out / "labels.npy").tolist() == [3, 3, 3, 7, 7, 7]
    codes = np.load(out / "codes.npy")
    assert codes.shape == (6, 4, 4, 2)
    assert codes.dtype == np.uint8
    pictures = sorted(out.glob("0*.png"))
    assert [p.name for p in pictures[2:4]] == ["00002-class-3.png", "00003-class-7.png"]
    # the pictures are the codes, decoded
    autoencoder, _ = load_models(Run.open(run_folder))
    import torch

    decoded = autoencoder.decode(torch.from_numpy(codes)).clamp(-1, 1).add(1).mul(127.5).round()
    for picture, image in zip(pictures, decoded[:, 0].numpy(), strict=True):
        assert np.array_equal(np.asarray(Image.open(picture)), image)
    with pytest.raises(ArtifactError):
        invoke(*arguments, "--out", out)


def test_a_seed_fixes_samples_and_guidance_changes_them(run_folder):
    run = Run.open(run_folder)
    one, two = (draw_from_run(run, 20, seed=5) for _ in range(2))
    assert np.array_equal(one.images, two.images)
    assert not np.array_equal(one.codes, draw_from_run(run, 20, seed=6).codes)
    assert not np.array_equal(one.codes, draw_from_run(run, 20, seed=5, cfg_scale=3.0).codes)


def test_sample_refuses_classes_it_does_not_have(run_folder, tmp_path):
    for classes, message in (("3,12", "0 to 9"), ("three", "must be whole numbers")):
        with pytest.raises(ConfigError, match=message):
            invoke("sample", run_folder, "--out", tmp_path / "s", "--classes", classes)
    assert not (tmp_path / "s").exists()


def test_sample_settings_may_differ_by_level(run_folder, tmp_path):
    arguments = ("sample", run_folder, "--num", "30", "--seed", "1")
    invoke(*arguments, "--top-k", "1,0", "--temperature", "1.0,2.0", "--out", tmp_path / "s")
    codes = np.load(tmp_path / "s" / "codes.npy")
    run = Run.open(run_folder)
    drawn = draw_from_run(run, 30, seed=1, top_k=[1, 0], temperature=[1.0, 2.0])
    assert np.array_equal(codes, drawn.codes)
    # three images a class: the likeliest first code is the same for all of them, not so the second
    first, second = codes[:, 0, 0].reshape(10, 3, 2).transpose(2, 0, 1)
    assert (first == first[:, :1]).all()
    assert not (second == second[:, :1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--temperature", "1e-300"), "temperature=1e-300 is out of range"),
        (("--cfg-scale", "1e30"), "cfg_scale=1e.30 is out of range"),
        (("--top-k", "1,2,3"), "must hold one number a level"),
        (("--top-p", "0"), "top_p=0.0 is out of range"),
        (("--seed", "-1"), "seed=-1 must be at least 0"),
        (("--num", "10000000000"), "num=10000000000 must be between 1 and 10000000"),
        (("--num", "0"), "num=0 must be between 1 and"),
        (("--top-k", "many"), "--top-k=many must be whole numbers"),
    ],
)
def test_sample_refuses_settings_out_of_range(run_folder, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        invoke("sample", run_folder, "--out", tmp_path / "s", *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["sample", "reconstruct"])
def test_a_folder_that_is_taken_is_refused_before_the_work(tmp_path, command):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    # not even the run is looked at
    with pytest.raises(ArtifactError, match="exists and is not empty"):
        invoke(command, tmp_path / "no-run", "--out", tmp_path / "full")


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("classes", [None, 1])
def test_one_class_is_not_the_same_as_none(tmp_path, shift, classes):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    labels = {} if classes is None else {"y_train": np.zeros(20, int), "y_test": np.zeros(10, int)}
    np.savez(tmp_path / "images.npz", x_train=pixels, x_test=pixels[:10], **labels)
    changes = {
        "data.source": "npz",
        "data.path": str(tmp_path / "images.npz"),
        "stage2.shift": shift,
        "transformer.label_dropout": 0.0,
    }
    run = train_run(load_config("digits", overrides={**TINY, **changes}), tmp_path / "run")
    drawn = draw_from_run(run, 4)
    assert len(evaluate_run(run)["bits_per_code"]) == 2
    if classes is None:
        assert drawn.labels is None
        with pytest.raises(ConfigError, match="it has none"):
            draw_from_run(run, 4, classes=[0])
    else:
        assert drawn.labels.tolist() == [0] * 4
        assert np.array_equal(draw_from_run(run, 4, classes=[0]).images, drawn.images)
        assert draw_from_run(run, 3, labels=np.zeros(3, np.int64)).labels.tolist() == [0] * 3


def test_evaluate_writes_the_report_and_prints_json_alone(run_folder):
    printed = json.loads(invoke("evaluate", run_folder, "--json"))
    assert printed == json.loads((run_folder / "metrics.json").read_text())
    assert set(printed) >= {
        "reconstruction_relative_error",
        "class_accuracy",
        "class_accuracy_ceiling",
        "coverage",
        "coverage_floor",
        "recall",
        "recall_floor",
        "bits_per_code",
        "unigram_bits_per_code",
        "seconds",
    }
    assert len(printed["bits_per_code"]) == len(printed["reconstruction_relative_error"]) == 2
    assert printed["evaluation"]["images"] == 360
    assert "<html" in (run_folder / "report.html").read_text()
    assert len(list((run_folder / "samples" / "evaluated").glob("0*.png"))) == 360


def test_reconstruct_takes_held_out_images_or_a_folder(run_folder, tmp_path):
    text = invoke("reconstruct", run_folder, "--out", tmp_path / "held_out")
    header, first, second = text.splitlines()[:3]
    assert header.split() == ["depth", "bits", "per", "image", "relative", "error", "PSNR,", "dB"]
    assert first.split()[:2] == ["1", "48"]  # 4 x 4 positions of 3 bits
    assert second.split()[:2] == ["2", "96"]
    assert len(list((tmp_path / "held_out").glob("0*.png"))) == 360
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(5):
        pixels = np.full((12, 9), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    invoke("reconstruct", run_folder, folder, "--out", tmp_path / "out")
    codes = np.load(tmp_path / "out" / "codes.npy")
    assert (codes.shape, codes.dtype) == ((5, 4, 4, 2), np.uint8)
    folder.joinpath("5.png").write_bytes(b"no picture")
    with pytest.raises((ArtifactError, DataError)):
        invoke("reconstruct", run_folder, folder, "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_reconstruction_errors_are_a_plain_ratio(run_folder):
    autoencoder, _ = load_models(Run.open(run_folder))
    _, held_out = open_images(source="digits", resolution=8)
    images = held_out.images[:50]
    levels = reconstruct(autoencoder, images)
    assert levels.shape == (2, *images.shape)
    codes = encode_images(autoencoder, images, batch_size=7)
    assert codes.shape == (50, 4, 4, 2)
    x = images.astype(float)
    spread = ((x - x.mean(0)) ** 2).sum()
    expected = [((level - x) ** 2).sum() / spread for level in levels.astype(float)]
    assert reconstruction_errors(images, levels) == pytest.approx(expected)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"is not a run; got no config\.yaml"):
        invoke("evaluate", tmp_path)


def test_help_loads_no_torch():
    code = "import sys, imagegen.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
