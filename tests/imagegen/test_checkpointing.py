"""Checkpoints that are damaged, of another layout, or cannot be written: nothing is lost."""

import errno
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_training import contents, interrupt_at, small

import imagegen.checkpointing
from imagegen.checkpointing import checkpoints
from imagegen.jobs import train_run
from imagegen.pictures import save_grid
from imagegen.runs import Run
from rqtoolkit.errors import ArtifactError, ConfigError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished stage 1 with two checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_run(keeping_two(), folder, stages=(1,))
    return folder


def keeping_two(**more):
    return small(**{"stage1.keep_checkpoints": 2, "stage1.checkpoint_every": 3, **more})


def test_a_damaged_checkpoint_names_the_one_before_it_and_the_way_there(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before, last = checkpoints(Run.open(folder), 1)
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.raises(ArtifactError) as raised:
        train_run(keeping_two(), folder, stages=(1,), resume=True)
    message = str(raised.value)
    assert f"{last} is not a readable safetensors file, or is truncated" in message
    assert f"To go on from {before.name}, remove the file (`rm {last}`)" in message
    assert contents(folder)["metrics"] == contents(whole)["metrics"]  # nothing was forgotten
    last.unlink()  # what the message says
    train_run(keeping_two(), folder, stages=(1,), resume=True)
    assert contents(folder) == contents(whole)


def test_a_checkpoint_of_an_earlier_layout_is_refused(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    checkpoints(Run.open(folder), 1)[-1].rename(folder / "checkpoints" / "stage1.safetensors")
    with pytest.raises(ArtifactError, match=r"stage1\.safetensors is .* earlier rqtoolkit"):
        train_run(keeping_two(), folder, stages=(1,), resume=True)


@pytest.mark.parametrize("what", ["checkpoint", "metrics", "picture"])
def test_a_full_disk_leaves_the_last_checkpoint(whole, tmp_path, monkeypatch, what):
    folder = tmp_path / "run"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:

        def fails_from_step_4(name, original, step_of):
            def call(*arguments, **keywords):
                if step_of(*arguments, **keywords) > 3:
                    raise full
                return original(*arguments, **keywords)

            patch.setattr(name, call)

        if what == "checkpoint":
            original = imagegen.checkpointing.write_artifact
            step_of = lambda *_, arguments, **__: arguments["step"]  # noqa: E731
            fails_from_step_4("imagegen.checkpointing.write_artifact", original, step_of)
        elif what == "metrics":
            fails_from_step_4("imagegen.runs.Run.log", Run.log, lambda _run, record: record["step"])
        else:
            fails_from_step_4(
                "imagegen.stage1.save_grid", save_grid, lambda path, _: int(path.stem[-7:])
            )
        with pytest.raises(ArtifactError) as raised:
            train_run(keeping_two(), folder, stages=(1,))
    assert "cannot be written in stage 1; got No space left on device" in str(raised.value)
    assert "the last checkpoint, stage1-0000003.safetensors, is whole" in str(raised.value)
    assert [path.name for path in checkpoints(Run.open(folder), 1)] == [
        "stage1-0000003.safetensors"
    ]
    train_run(keeping_two(), folder, stages=(1,), resume=True)
    assert contents(folder) == contents(whole)


def test_vectors_gathered_for_k_means_are_part_of_a_checkpoint(tmp_path):
    """A run that stops before its codebooks have started goes on with what it had gathered."""
    config = small(**{"quantizer.codebook_size": 200, "stage1.sample_every": 6})
    train_run(config, tmp_path / "whole", stages=(1,))
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "run", stages=(1,), progress=interrupt_at(1, 1))
    path = checkpoints(Run.open(tmp_path / "run"), 1)[-1]
    gathered = [v for k, v in load_file(path).items() if k.endswith("gathered")]
    assert [len(vectors) for vectors in gathered] == [128]
    train_run(config, tmp_path / "run", stages=(1,), resume=True)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_settings_that_change_no_result_may_change(whole, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(keeping_two(), folder, stages=(1,), progress=interrupt_at(1, 4))
    changed = keeping_two(
        **{
            "device": "cpu",
            "parallel": "fsdp",
            "data.workers": 1,
            "stage1.log_every": 2,
            "stage1.checkpoint_every": 5,
            "stage1.keep_checkpoints": 1,
            "stage1.loss_limit": 1e9,
        }
    )
    train_run(changed, folder, stages=(1,), resume=True)
    expected, found = (
        load_file(path / "checkpoints" / "rqvae.safetensors") for path in (whole, folder)
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ConfigError) as raised:
        train_run(
            keeping_two(**{"stage1.learning_rate": 0.5, "seed": 3}),
            folder,
            stages=(1,),
            resume=True,
        )
    assert "stage1.learning_rate=0.5, it had 0.003" in str(raised.value)
    assert "seed=3, it had 0" in str(raised.value)
