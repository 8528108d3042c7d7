"""Configurations that cannot train: refused before anything is written."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_imagegen_cli import TINY

from imagegen.config import dump_config, load_config
from imagegen.guards import enough_memory
from imagegen.jobs import train_run
from imagegen.runs import exclusive
from imagegen.text import train_tokenizer
from rqtoolkit.errors import ArtifactError, ConfigError, ShapeError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoencoder.multipliers": []}, "must name a level"),
        ({"data.resolution": 9}, "does not divide by the reduction"),
        ({"autoencoder.fold": 3}, "does not divide by the reduction"),
        ({"autoencoder.attention": [8, 16]}, r"do not occur: \[16\]; got levels of \[8, 4\]"),
        ({"data.held_out": 5000}, "held_out"),
        ({"data.path": "somewhere"}, "takes no path"),
        (
            {"stage1.discriminator.weight": 1, "stage1.discriminator.penalty": "r1"},
            r"penalty=r1 needs a weight; got .*penalty_weight=0",
        ),
        (
            {"stage1.discriminator.penalty": "lecam", "stage1.discriminator.penalty_weight": 1},
            r"penalty=lecam needs a discriminator; got .*\.weight=0",
        ),
        ({"stage1.warmup_steps": 5}, r"stage1\.warmup_steps=5 must be .* stage1\.steps; got 4\."),
        ({"stage2.warmup_steps": 5}, r"stage2\.warmup_steps=5 must be .* stage2\.steps; got 4\."),
        ({"stage1.discriminator.augment": ["color"]}, r"augment=\['color'\] needs a discriminator"),
    ],
)
def test_a_refused_configuration_leaves_nothing_behind(tmp_path, changes, message):
    config = load_config("digits", overrides={**TINY, **changes})
    with pytest.raises(ConfigError, match=message):
        train_run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_stage_2_before_stage_1_leaves_nothing_behind(tmp_path):
    with pytest.raises(ArtifactError, match=r"stage 1 .* not finished; .*`--stage 1` first, or"):
        train_run(load_config("digits", overrides=TINY), tmp_path / "run", stages=(2,))
    assert not list(tmp_path.iterdir())


def test_images_that_do_not_fit_leave_nothing_behind(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", x_train=pixels[..., 0], x_test=pixels)
    data = {"data.source": "npz", "data.path": str(tmp_path / "images.npz")}
    config = load_config("digits", overrides={**TINY, **data})
    with pytest.raises(ShapeError, match="same channels; got 1 and 3"):
        train_run(config, tmp_path / "run")
    (tmp_path / "folder").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "folder" / f"{number}.png")
    data = {"data.source": "folder", "data.path": str(tmp_path / "folder"), "stage2.shift": 1}
    config = load_config("digits", overrides={**TINY, **data})
    with pytest.raises(ConfigError, match=r"label_dropout=0\.1 needs images with classes"):
        train_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_below_a_file_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"cannot be made; got .*file, which is no folder"):
        train_run(load_config("digits", overrides=TINY), tmp_path / "file" / "run")


def test_a_model_beyond_memory_is_refused_before_a_folder_is_made(tmp_path):
    config = load_config(
        "digits", overrides={**TINY, "transformer.dim": 65536, "transformer.body_layers": 50}
    )
    with pytest.raises(ConfigError, match=r"model of stage 2 needs .* GB .* sizes of the transf"):
        train_run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.resolution": 9}, "does not divide by the reduction"),
        ({"autoencoder.attention": [16]}, "do not occur"),
        ({"transformer.dim": 65536, "transformer.body_layers": 50}, "stage 2 needs .* GB"),
        ({"stage1.warmup_steps": 5}, "warmup_steps=5 must be at most"),
        ({"init_from": "nowhere"}, "nowhere has no finished stage 1"),
    ],
)
def test_what_needs_no_images_is_refused_before_they_are_read(
    tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr("imagegen.jobs.load_run_images", _read_nothing)
    with pytest.raises((ConfigError, ArtifactError), match=message):
        train_run(load_config("digits", overrides={**TINY, **changes}), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def _read_nothing(*_args, **_kwargs):
    raise AssertionError("images were read")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_want_of_memory_is_told_in_one_line(tmp_path, monkeypatch, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("imagegen.jobs.train_stage1", fail)
    with pytest.raises(ConfigError, match=r"stage 1 needs more .* stage1\.checkpointing=true"):
        train_run(load_config("digits", overrides=TINY), tmp_path / "run")


def test_torch_says_want_of_memory_as_we_expect():
    shortage = pytest.raises(ConfigError, match="more memory than there is")
    with shortage, enough_memory("a tensor", "Lower it."):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="Boolean"), enough_memory("a tensor", "Lower it."):
        bool(torch.zeros(2))


def test_a_damaged_autoencoder_is_written_again_as_advised(tmp_path):
    config = load_config("digits", overrides={**TINY, "stage1.steps": 1, "stage2.steps": 1})
    path = train_run(config, tmp_path / "run", stages=(1,)).autoencoder_path
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    with pytest.raises(ArtifactError, match="run `--stage 1 --resume`, which writes it"):
        train_run(config, tmp_path / "run", stages=(2,), resume=True)
    train_run(config, tmp_path / "run", stages=(1,), resume=True)
    assert path.read_bytes() == good


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("imagegen.jobs.load_run_images", _read_nothing)
    config = load_config("digits", overrides=TINY)
    partial = tmp_path / "run" / ".theirs.partial"
    with exclusive(tmp_path / "run"):
        partial.write_text("being written")
        (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
        for _ in range(2):
            with pytest.raises(ConfigError, match="another process trains in this folder"):
                train_run(config, tmp_path / "run", resume=True)
        assert partial.read_text() == "being written"
    with exclusive(tmp_path / "run"):  # free again
        pass


def test_a_folder_made_for_a_lock_alone_goes_with_it(tmp_path):
    path = tmp_path / "new" / "run"
    with exclusive(path), pytest.raises(ConfigError, match="another process"), exclusive(path):
        pass
    assert not list(tmp_path.iterdir())
    with exclusive(path):
        (path.parent / "other").mkdir()
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "other"]
    with exclusive(path):
        (path / "kept").touch()
    assert (path / "kept").exists()


def test_a_run_goes_on_without_the_file_its_tokenizer_came_from(tmp_path):
    pytest.importorskip("tokenizers")
    texts = ["a red bus", "two dogs"]
    lines = [f"{number}.png\t{texts[number % 2]}" for number in range(20)]
    (tmp_path / "images.tsv").write_text("\n".join(lines))
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    named = tmp_path / "tokenizer.json"
    train_tokenizer(texts, vocabulary=260, length=6).save(named)
    data = {"data.source": "list", "data.path": str(tmp_path / "images.tsv"), "stage2.shift": 0}
    config = load_config("digits", overrides={**TINY, **data, "data.tokenizer": str(named)})
    run = train_run(config, tmp_path / "run", stages=(1,))
    before = (run.path / "config.yaml").read_bytes()
    train_tokenizer(["other words"], vocabulary=265, length=6).save(named)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=1))
    with pytest.raises(ConfigError, match="is not the one this run began with"):
        train_run(moved, run.path, resume=True)
    assert (run.path / "config.yaml").read_bytes() == before
    named.unlink()
    train_run(moved, run.path, resume=True)
    assert run.transformer_path.exists()


def test_a_lock_goes_with_its_process(tmp_path):
    program = (
        "import os, signal, sys; from imagegen.runs import exclusive\n"
        "with exclusive(sys.argv[1]): print('held', flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process"), exclusive(tmp_path):
            pass
        process.kill()
        process.wait()
    with exclusive(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_told_by_its_option(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise FileNotFoundError(2, "No such file or directory")  # as of a folder in /proc

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match=r"--out .*xx/y cannot be made .*; got No such file"):
        train_run(load_config("digits", overrides=TINY), tmp_path / "xx" / "y")
