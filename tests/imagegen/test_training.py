"""The training loop: what a seed fixes, averages, schedules, and runs that stop and go on."""

import itertools
import json
import os
import signal

import numpy as np
import pytest
import torch
from tiny_runs import TINY_MODELS
from torch import nn

from imagegen.checkpointing import WeightAverage
from imagegen.config import load_config
from imagegen.data import ImageSet, batch_rows
from imagegen.jobs import train_run
from imagegen.runs import Run
from imagegen.stage1 import train_stage1
from imagegen.stage2 import held_out_bits
from imagegen.training import learning_rate, step_seed
from rqtoolkit.errors import ArtifactError, ConfigError, DataError
from rqtoolkit.transformer import RQTransformer

SMALL = {
    **TINY_MODELS,
    "autoencoder.dropout": 0.1,
    **{
        f"{stage}.{key}": value
        for stage in ("stage1", "stage2")
        for key, value in {
            "steps": 6,
            "batch_size": 8,
            "warmup_steps": 2,
            "log_every": 1,
            "checkpoint_every": 2,
            "sample_every": 3,
        }.items()
    },
    "sampling.batch_size": 40,
}


def small(**more):
    # An interruption leaves a checkpoint of its own among those kept beside the last.
    alone = {"stage1.keep_checkpoints": 1, "stage2.keep_checkpoints": 1}
    return load_config("digits", overrides={**SMALL, **alone, **more})


def contents(folder):
    """Every file of a run; metrics without the seconds they took."""
    files = {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.*"))}
    lines = Run.open(folder).metrics()
    files["metrics"] = [{k: v for k, v in m.items() if k != "seconds"} for m in lines]
    return {name: data for name, data in files.items() if str(name) != "metrics.jsonl"}


def interrupt_at(stage, step):
    """A progress callback that presses Ctrl-C at one step."""

    def progress(description, done, _total):
        if description.startswith(f"Stage {stage}") and done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_run(small(), folder)
    return contents(folder)


def test_a_seed_fixes_a_run_to_the_bit(whole, tmp_path):
    torch.manual_seed(1234)  # the surroundings do not matter
    train_run(small(), tmp_path / "again")
    assert contents(tmp_path / "again") == whole
    train_run(small(seed=1), tmp_path / "other")
    assert contents(tmp_path / "other")["metrics"] != whole["metrics"]


@pytest.mark.parametrize(("stage", "step"), [(1, 1), (1, 4), (2, 3), (2, 5)])
def test_an_interrupted_run_goes_on_to_the_bit(whole, tmp_path, stage, step):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(small(), folder, progress=interrupt_at(stage, step))
    train_run(small(), folder, resume=True)
    assert contents(folder) == whole


def test_a_killed_run_goes_on_to_the_bit(whole, tmp_path):
    """Nothing is saved when a process is killed: it goes on from the last checkpoint."""

    class KilledError(Exception):
        pass

    def progress(description, done, _total):
        if description.startswith("Stage 2") and done == 5:
            raise KilledError

    folder = tmp_path / "run"
    with pytest.raises(KilledError):
        train_run(small(), folder, progress=progress)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": 2, "ste')  # a line cut in half
    train_run(small(), folder, resume=True)
    assert contents(folder) == whole


def test_stages_may_be_trained_one_by_one(whole, tmp_path):
    folder = tmp_path / "run"
    train_run(small(), folder, stages=(1,))
    train_run(small(), folder, stages=(2,), resume=True)
    assert contents(folder) == whole


def test_a_run_is_not_mixed_with_another(tmp_path):
    folder = tmp_path / "run"
    Run.create(folder, small())
    with pytest.raises(ConfigError, match="Pass --resume"):
        Run.create(folder, small())
    with pytest.raises(ConfigError, match="another configuration"):
        Run.create(folder, small(seed=9), resume=True)
    Run.create(folder, small(device="cpu"), resume=True)  # this changes no result
    assert Run.open(folder).config.device == "cpu"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not an empty folder"):
        Run.create(tmp_path / "full", small())


def test_the_clock_of_a_stage_goes_on(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(small(), folder, progress=interrupt_at(1, 4))
    lines = Run.open(folder).metrics()
    lines[-1]["seconds"] = 1000.0
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    train_run(small(), folder, resume=True)
    clock = {
        (m["stage"], m["step"]): m["seconds"] for m in Run.open(folder).metrics() if "loss" in m
    }
    assert 1000 < clock[1, 5] <= clock[1, 6] < 1100
    assert clock[2, 1] < 100


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    folder = tmp_path / "run"
    train_run(small(), folder)
    one, two = (folder / "checkpoints" / f"stage{stage}-0000006.safetensors" for stage in (1, 2))
    one.write_bytes(two.read_bytes())
    with pytest.raises(ArtifactError, match=r"stage1-0000006\.safetensors does not hold"):
        train_run(small(), folder, resume=True)


def test_a_damaged_line_of_metrics_is_named(tmp_path):
    folder = tmp_path / "run"
    train_run(small(), folder, stages=(1,))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("what is this\n")
    with pytest.raises(ArtifactError, match=r"line \d+ of .*metrics\.jsonl is no record"):
        train_run(small(), folder, resume=True)


def test_held_out_bits_are_a_plain_mean_of_logarithms():
    generator = torch.Generator().manual_seed(0)
    model = RQTransformer(
        (2, 3),
        depth=2,
        codebook_size=5,
        dim=8,
        body_layers=1,
        depth_layers=1,
        num_heads=2,
        num_classes=3,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        codes = torch.randint(5, (7, 2, 3, 2), generator=generator)
        cond = torch.arange(7) % 3
        chosen = model(codes, cond=cond).log_softmax(-1).gather(-1, codes[..., None]).squeeze(-1)
    expected = -chosen.double().mean((0, 1, 2)) / np.log(2)
    for batch_size in (256, 3):  # 7 = 3 + 3 + 1: the last batch must not weigh more
        bits = held_out_bits(model, codes, cond, batch_size=batch_size)
        assert bits == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    config = small(**{"stage1.learning_rate": 1.0, "stage1.clip_norm": None, "stage1.steps": 50})
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8))
    run = Run.create(tmp_path / "run", config)

    class Poison(nn.Module):
        def forward(self, x):
            return x * float("nan")

    original = torch.nn.functional.mse_loss
    try:
        torch.nn.functional.mse_loss = lambda *a, **k: original(*a, **k) * float("nan")
        with pytest.raises(
            DataError, match=r"diverged; got a loss of nan at step 1.*learning_rate"
        ):
            train_stage1(run, images, images)
    finally:
        torch.nn.functional.mse_loss = original


def test_batches_visit_every_row_once_a_pass():
    rows = torch.cat([batch_rows(10, 4, step, seed=3) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    # a batch larger than the data spans several passes
    rows = batch_rows(3, 7, 0, seed=0).tolist()
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2]
    assert len(rows) == 7
    # and the next batch goes on in the pass where it ended
    assert sorted(rows[6:] + batch_rows(3, 7, 1, seed=0).tolist()[:2]) == [0, 1, 2]


def test_learning_rate_warms_up_and_falls_to_zero():
    config = small(**{"stage2.learning_rate": 1.0, "stage2.warmup_steps": 4, "stage2.steps": 12})
    rates = [learning_rate(config.stage2, step) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0  # the cosine starts at the top
    assert rates[8] == pytest.approx(0.5)  # and is half way down half way
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_average_forgets_the_start_faster_than_its_decay():
    module = nn.Linear(1, 1, bias=False)
    average = WeightAverage(module, decay=0.15)
    values = []
    for value in (1.0, 3.0, 7.0):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update()
        values.append(average.values["weight"].item())
    # decay min(0.15, n / (n + 9)) is 0, 0.1, 0.15
    assert values == pytest.approx([1.0, 0.1 * 1 + 0.9 * 3, 0.15 * 2.8 + 0.85 * 7])
    with average.applied():
        assert module.weight.item() == pytest.approx(6.37)
        assert not module.training
    assert module.weight.item() == 7.0
    assert module.training


def test_no_average_takes_no_memory():
    module = nn.Linear(3, 2)
    average = WeightAverage(module, 0.0)
    weight = module.weight.detach().clone()
    average.update()
    assert average.values == {}
    with average.applied():
        assert not module.training
        assert torch.equal(module.weight, weight)
    assert module.training


def test_seeds_of_neighbours_are_unrelated():
    seeds = {
        step_seed(seed, stage, step) for seed in range(5) for stage in (1, 2) for step in range(50)
    }
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_pace_shown_is_that_since_the_last_line(tmp_path, monkeypatch):
    clock, shown = [0.0], []

    def tick():
        clock[0] += 1e-6
        return clock[0]

    def progress(description, done, _total):
        if description.startswith("Stage 1"):
            shown.append(description.rpartition(", ")[2])
            clock[0] += 1000.0 if done == 1 else 2.0  # data-loader workers start slowly

    monkeypatch.setattr("imagegen.training.perf_counter", tick)
    train_run(small(), tmp_path / "run", stages=(1,), progress=progress)
    assert shown[1:] == ["0 images/s", *["4 images/s"] * 4]
