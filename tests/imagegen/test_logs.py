"""Figures reach TensorBoard and W&B, a step once however often a run stops and goes on."""

import sys
import types
from pathlib import Path

import pytest
from test_training import interrupt_at, small

from imagegen.jobs import train_run
from imagegen.runs import Run
from rqtoolkit.errors import MissingDependencyError


class KilledError(Exception):
    pass


def kill_at(stage, step):
    def progress(description, done, _total):
        if description.startswith(f"Stage {stage}") and done == step:
            raise KilledError

    return progress


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the module: what sessions were asked for, and what was logged."""
    module = types.ModuleType("wandb")
    module.sessions, module.logged, module.Image = [], [], lambda path: ("image", Path(path).name)

    class Session:
        def log(self, values, step):
            module.logged.append((step, values))

        def finish(self, exit_code=0):
            module.sessions[-1]["exit_code"] = exit_code

    def init(**settings):
        module.sessions.append(settings)
        return Session()

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_every_figure_once(tmp_path, wandb):
    config = small(wandb="my-project", **{"stage1.checkpoint_every": 4})
    with pytest.raises(KilledError):
        train_run(config, tmp_path / "run", progress=kill_at(1, 6))  # goes on from step 4
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "run", resume=True, progress=interrupt_at(2, 3))
    train_run(config, tmp_path / "run", resume=True)
    steps = [step for step, values in wandb.logged if any("/loss" in name for name in values)]
    assert steps == list(range(1, 13))  # stage 2 counts on from stage 1
    values = {name: value for _, values in wandb.logged for name, value in values.items()}
    records = {m["stage"]: m for m in Run.open(tmp_path / "run").metrics()}
    bits = records[2]["held_out_bits_per_code"]
    assert [values[f"stage2/held_out_bits_per_code/{level}"] for level in (1, 2)] == bits
    assert values["stage1/reconstructions"] == ("image", "reconstructions-0000006.png")
    assert values["stage2/samples"] == ("image", "samples-0000006.png")
    assert records[2]["samples"] == "samples/samples-0000006.png"
    assert {s["id"] for s in wandb.sessions} == {(tmp_path / "run" / "wandb-id.txt").read_text()}
    assert {(s["project"], s["resume"]) for s in wandb.sessions} == {("my-project", "allow")}
    # stage 1 killed; stage 1 done; stage 2 interrupted; nothing left of stage 1; stage 2 done
    assert [s["exit_code"] for s in wandb.sessions] == [1, 0, 1, 0, 0]


def test_tensorboard_shows_every_step_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = small(tensorboard=True, **{"stage1.checkpoint_every": 4})
    with pytest.raises(KilledError):
        train_run(config, tmp_path / "run", stages=(1,), progress=kill_at(1, 6))
    train_run(config, tmp_path / "run", stages=(1,), resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard" / "stage1"))
    events.Reload()
    logged = [m for m in Run.open(tmp_path / "run").metrics() if "loss" in m]
    for name in ("loss", "autoencoder_gradient_norm", "learning_rate"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(m["step"], pytest.approx(m[name], rel=1e-6)) for m in logged]
    assert [e.step for e in events.Images("reconstructions")] == [3, 6]
    errors = [m for m in Run.open(tmp_path / "run").metrics() if "held_out_relative_error" in m]
    last = events.Scalars("held_out_relative_error/2")[-1]
    assert last.value == pytest.approx(errors[-1]["held_out_relative_error"][1])


@pytest.mark.parametrize(
    ("settings", "module"),
    [({"tensorboard": True}, "torch.utils.tensorboard"), ({"wandb": "x"}, "wandb")],
)
def test_a_logger_that_is_not_installed_is_refused_first(tmp_path, monkeypatch, settings, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rqtoolkit\[logging\]'"):
        train_run(small(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
