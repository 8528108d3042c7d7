"""`sample` and `reconstruct` on runs of random weights: one test for each option."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from imagegen.autoencoder import RQVAE
from imagegen.cli import app
from imagegen.evaluate import Classifier
from imagegen.images import to_float
from imagegen.jobs import load_models
from imagegen.perceptual import load_perceptual
from imagegen.sample_jobs import draw_from_run
from rqtoolkit.errors import ArtifactError, ConfigError


@pytest.fixture(scope="module")
def run(untrained_run, tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("command") / "run")


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def sample(run, tmp_path):
    def sample(*options, of=run, number=6):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        invoke("sample", of.path, "--out", out, "--num", number, "--seed", "1", *options)
        return out

    return sample


def codes(folder):
    return np.load(folder / "codes.npy")


def test_a_folder_holds_what_the_docs_say(run, sample):
    out = sample()
    assert {p.name for p in out.iterdir() if not p.name.startswith("0")} == {
        "codes.npy",
        "grid.png",
        "labels.npy",
        "samples.npz",
        "sampling.json",
    }
    assert np.array_equal(codes(out), draw_from_run(run, 6, seed=1).codes)
    record = json.loads((out / "sampling.json").read_text())
    assert (record["seed"], record["number"], record["top_p"]) == (1, 6, 0.95)
    assert record["classes"] == {"0": 2, "1": 2, "2": 2}
    assert not list(out.parent.glob(".*"))  # the parts are gone


@pytest.mark.parametrize("formats", ["png", "npz"])
def test_format(sample, formats):
    out = sample("--format", formats)
    assert (out / "samples.npz").exists() == (formats == "npz")
    assert (out / "00000-class-0.png").exists() == (formats == "png")


def test_unknown_format(sample):
    with pytest.raises(ConfigError, match="format=jpg is not known"):
        sample("--format", "jpg")


def test_batch_size_is_part_of_the_result(run, sample):
    assert np.array_equal(
        codes(sample("--batch-size", "2")), draw_from_run(run, 6, seed=1, batch_size=2).codes
    )


def test_dtype(run, sample):
    assert np.array_equal(
        codes(sample("--dtype", "bfloat16")), draw_from_run(run, 6, seed=1, dtype="bfloat16").codes
    )


def test_accept_and_classifier(sample, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "classifier.safetensors"
    Classifier(channels=1, resolution=8, num_classes=3).eval().save(path)
    out = sample("--accept", "0.25", "--classifier", path)
    record = json.loads((out / "sampling.json").read_text())
    assert record["acceptance"]["drawn"] == 24
    kept = record["acceptance"]["mean_probability_kept"]
    assert kept > record["acceptance"]["mean_probability_drawn"]
    Classifier(channels=1, resolution=8, num_classes=4).eval().save(path)
    with pytest.raises(ConfigError, match="must know the model's 3 classes"):
        sample("--accept", "0.25", "--classifier", path)


def test_prefix_and_rows(sample, tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    out = sample("--prefix", tmp_path / "image.png", "--rows", "2", number=5)
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "equal.png")
    sample("--prefix", tmp_path / "equal.png", "--rows", "2", number=1)
    assert not caplog.records
    colour = np.stack([pixels, pixels // 2, pixels], axis=-1)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    sample("--prefix", tmp_path / "colour.png", "--rows", "2", number=1)
    assert "colour.png is in colour" in caplog.text
    assert (codes(out)[:, :2] == codes(out)[:1, :2]).all()
    grid = np.asarray(Image.open(out / "grid.png").convert("L"))
    # original and masked image on top, the lower half of the second in grey
    assert (grid[45:75, 90:160] == 128).all()
    with pytest.raises(ConfigError, match="go together"):
        sample("--rows", "2")
    with pytest.raises(ArtifactError, match=r"--prefix=.*none\.png .*got no such file"):
        sample("--prefix", tmp_path / "none.png", "--rows", "2")
    with pytest.raises(ArtifactError, match=r"--prefix=.* must be one image; got a folder"):
        sample("--prefix", tmp_path, "--rows", "2")
    several = np.zeros((3, 8, 8), np.uint8)
    np.savez(tmp_path / "several.npz", x_train=several, x_test=several)
    with pytest.raises(ConfigError, match=r"--prefix=.*several\.npz must be one image; got 3"):
        sample("--prefix", tmp_path / "several.npz", "--rows", "2")


@pytest.fixture(scope="module")
def text_run(untrained_run, tmp_path_factory):
    pytest.importorskip("tokenizers")
    from imagegen.text import train_tokenizer

    folder = tmp_path_factory.mktemp("text")
    tokenizer = train_tokenizer(["a red bus", "two dogs"], vocabulary=260, length=6)
    tokenizer.save(folder / "tokenizer.json")
    settings = {
        "transformer.text_length": 6,
        "data.tokenizer": str(folder / "tokenizer.json"),
    }
    return untrained_run(folder / "run", classes=None, tokenizer=tokenizer, **settings)


def test_text_may_be_repeated_or_come_from_a_file(text_run, sample, tmp_path):
    spoken = sample("--text", "two dogs", "--text", "a red bus", of=text_run)
    captions = json.loads((spoken / "captions.json").read_text())
    assert captions == ["two dogs"] * 3 + ["a red bus"] * 3
    (tmp_path / "texts.txt").write_text("two dogs\n\na red bus\n")
    written = sample("--texts", tmp_path / "texts.txt", of=text_run)
    assert np.array_equal(codes(written), codes(spoken))
    assert not (spoken / "labels.npy").exists()
    (tmp_path / "texts.txt").write_text("\n")
    with pytest.raises(ConfigError, match="holds no text"):
        sample("--texts", tmp_path / "texts.txt", of=text_run)
    with pytest.raises(ArtifactError, match="cannot be read"):
        sample("--texts", tmp_path / "none.txt", of=text_run)


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(run, sample, tmp_path):
    alone = sample("--batch-size", "2", "--format", "npz", number=7)
    rqtool = Path(sys.executable).with_name("rqtool")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    asked = ["--num", "7", "--seed", "1", "--batch-size", "2", "--format", "npz"]
    command = [*launch, "--no-python", "--", rqtool, "imagegen", "sample", run.path, *asked]
    result = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "shared")],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("7 images") == 1
    for name in ("codes.npy", "samples.npz", "sampling.json"):
        assert (tmp_path / "shared" / name).read_bytes() == (alone / name).read_bytes()


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory):
    """VGG16 and the heads of LPIPS with random weights, in the public layouts."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("lpips")
    widths = [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    vgg, previous = {}, 3
    for place, width in zip(places, widths, strict=True):
        weight = torch.randn(width, previous, 3, 3, generator=generator) * (previous * 9) ** -0.5
        vgg |= {f"features.{place}.weight": weight, f"features.{place}.bias": torch.zeros(width)}
        previous = width
    save_file(vgg, folder / "vgg.safetensors")
    heads = {
        f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for n, width in enumerate((64, 128, 256, 512, 512))
    }
    save_file(heads, folder / "heads.safetensors")
    return folder / "vgg.safetensors", folder / "heads.safetensors"


def test_reconstruct_with_lpips_and_json(untrained_run, lpips_files, tmp_path):
    run = untrained_run(tmp_path / "run", **{"data.resolution": 16})
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    vgg, heads = lpips_files
    files = [tmp_path / f"{n}.png" for n in range(3)]
    out = tmp_path / "out"
    arguments = ("reconstruct", run.path, *files, "--vgg", vgg, "--lpips", heads)
    found = json.loads(invoke(*arguments, "--out", out, "--json"))
    assert found == json.loads((out / "errors.json").read_text())
    assert [row["depth"] for row in found["levels"]] == [1, 2]
    assert [row["bits_per_image"] for row in found["levels"]] == [64 * 3, 64 * 6]
    assert len(found["protocol"]["extractor"]["sha256"].split()) == 2
    # the files' own last reconstructions give the last row
    from imagegen.evaluate import psnr, ssim
    from imagegen.user_images import read_user_images

    images = read_user_images(files, resolution=16, channels=1)
    shown = np.stack([np.asarray(Image.open(out / f"0000{n}.png")) for n in range(3)])[..., None]
    last = found["levels"][-1]
    assert last["psnr"] == pytest.approx(psnr(images, shown).mean())
    assert last["ssim"] == pytest.approx(ssim(images, shown).mean())
    distance = load_perceptual(vgg, heads)(to_float(images), to_float(shown)).mean()
    assert last["lpips"] == pytest.approx(float(distance), rel=1e-4)
    with pytest.raises(ConfigError, match="got one of them"):
        invoke("reconstruct", run.path, files[0], "--vgg", vgg, "--out", tmp_path / "other")


def test_reconstruct_without_codes_has_no_depths(untrained_run, tmp_path):
    from imagegen.config import load_config
    from imagegen.runs import Run
    from imagegen.stage1 import build_autoencoder

    source = untrained_run(tmp_path / "rq")
    config = load_config(source.path / "config.yaml", overrides={"autoencoder.bottleneck": "kl"})
    run = Run.create(tmp_path / "kl", config)
    build_autoencoder(config, image_channels=1).eval().save(run.autoencoder_path)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "image.png")
    text = invoke("reconstruct", run.path, tmp_path / "image.png", "--out", tmp_path / "out")
    assert "bits per image" not in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "00000.png",
        "errors.json",
        "grid.png",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.resolution": 16}, r"grid \[8, 8\] in place of \[4, 4\]"),
        ({"quantizer.depth": 3}, r"codebook sizes \[8, 8, 8\] in place of \[8, 8\]"),
        ({"quantizer.codebook_size": 9}, r"codebook sizes \[9, 9\] in place of \[8, 8\]"),
        ({"autoencoder.code_dim": 5}, "other codewords"),
        ({}, "other codewords"),
    ],
)
def test_models_that_do_not_fit_each_other_are_refused(untrained_run, tmp_path, overrides, message):
    run = untrained_run(tmp_path / "run")
    other = untrained_run(tmp_path / "other", **overrides)
    shutil.copyfile(other.transformer_path, run.transformer_path)
    if not overrides:
        autoencoder = RQVAE.load(run.autoencoder_path)
        autoencoder.quantizer.codebooks.add_(1)
        autoencoder.save(run.autoencoder_path)
    with pytest.raises(ArtifactError, match=message) as refusal:
        load_models(run)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num", "0"], r"num=0 must be between 1 and 10000000\. Ask for one at least"),
        (["--classes", "0,a"], r"--classes=0,a must be whole numbers; got 'a'\."),
        (["--classifier", "c.pth"], r"--classifier=c\.pth scores .* Add --accept, such as"),
        (["--out", __file__], r"test_sample_command\.py must be a new folder; got a file"),
        (["--accept", "0.5"], r"no data\.path.*Give one with --classifier"),
        (["--cfg-scale", "2"], r"Leave --cfg-scale out, or train .*transformer\.label_dropout"),
        (["--out", "/proc/bad"], r"output: /proc/bad cannot be written"),
    ],
)
def test_refusals_name_the_next_step(untrained_run, tmp_path, options, message):
    plain = {"data.source": "folder", "transformer.label_dropout": 0.0}
    run = untrained_run(tmp_path / "run", **plain)
    with pytest.raises((ArtifactError, ConfigError), match=message) as refusal:
        invoke("sample", run.path, "--out", tmp_path / "out", *options)
    assert "\n" not in str(refusal.value)


def test_a_damaged_configuration_names_its_run(untrained_run, tmp_path):
    run = untrained_run(tmp_path / "broken")
    (run.path / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"run: .*broken has a damaged config\.yaml"):
        invoke("sample", run.path, "--out", tmp_path / "out")
