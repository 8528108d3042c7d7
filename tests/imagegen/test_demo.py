"""The demo, shortened: what it writes, and that a seed fixes all of it."""

import json

import pytest

from imagegen import demo
from imagegen.config import load_config
from imagegen.demo import run_demo
from imagegen.runs import LOCK, Run, exclusive
from rqtoolkit.errors import ConfigError


def files(folder):
    """Contents of every file of a demo but for the seconds it took."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != LOCK):
        data = path.read_bytes()
        if path.suffix == ".json":
            data = {k: v for k, v in json.loads(data).items() if k != "seconds"}
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in data.splitlines()]
            data = [{k: v for k, v in r.items() if k != "seconds"} for r in records]
        found[str(path.relative_to(folder))] = data
    return found


@pytest.mark.slow
def test_a_seed_fixes_everything_the_demo_writes(tmp_path):
    metrics = run_demo(tmp_path / "one", seed=3, quick=True)
    first = files(tmp_path / "one")
    named = {"report.html", "metrics.json", "samples.png", "checkpoints/rqvae.safetensors"}
    assert named <= set(first)
    errors = metrics["reconstruction_relative_error"]
    assert len(errors) == 4
    assert errors == sorted(errors, reverse=True)
    run_demo(tmp_path / "one", seed=3, quick=True)  # an earlier run there is replaced
    assert files(tmp_path / "one") == first


def test_the_demo_replaces_nothing_but_a_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not an empty folder"):
        run_demo(tmp_path, quick=True)
    (tmp_path / "config.yaml").write_text("name: mine")
    with pytest.raises(ConfigError, match="holds a run already that is not the demo's own"):
        run_demo(tmp_path, quick=True)
    (tmp_path / "config.yaml").write_text("database: postgres")
    with pytest.raises(ConfigError, match="database is no known key"):
        run_demo(tmp_path, quick=True)
    assert (tmp_path / "thesis.txt").exists()


def test_the_demo_leaves_a_changed_digits_alone(tmp_path):
    mine = load_config("digits", overrides={"stage2.steps": 20_000})
    Run.create(tmp_path / "run", mine).log({"stage": 1, "step": 1})
    with pytest.raises(ConfigError, match="not the demo's own"):
        run_demo(tmp_path / "run", quick=True)
    assert Run.open(tmp_path / "run").metrics()


def test_two_demos_do_not_share_a_folder(tmp_path, monkeypatch):
    out = tmp_path / "demo"
    theirs = tmp_path / ".demo.unfinished" / "metrics.jsonl"
    theirs.parent.mkdir()
    theirs.write_text("in the making")
    with exclusive(out), pytest.raises(ConfigError, match=r"demo is in use; got another process"):
        run_demo(out, quick=True)
    assert theirs.read_text() == "in the making"

    def train(config, path, **_):
        with pytest.raises(ConfigError, match="is in use"):
            run_demo(out, quick=True)
        return Run.create(path, config)

    monkeypatch.setattr(demo, "train_run", train)
    monkeypatch.setattr(demo, "evaluate_run", lambda _run, **_: {})
    run_demo(out)
    assert Run.open(out).config.seed == 0
    with exclusive(out):  # free again
        pass


@pytest.mark.parametrize("where", ["train_run", "evaluate_run"])
def test_an_interrupted_demo_leaves_the_earlier_one(tmp_path, monkeypatch, where):
    out = tmp_path / "demo"
    config = load_config("digits", overrides=demo._QUICK)
    Run.create(out, config).log({"stage": 1, "step": 1})
    (out / "report.html").write_text("an earlier report")
    before = files(out)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train_run", lambda config, path, **_: Run.create(path, config))
    monkeypatch.setattr(demo, where, stop)
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, quick=True)
    assert files(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_new_demo_takes_the_place_of_the_earlier_one(tmp_path, monkeypatch):
    out = tmp_path / "demo"
    Run.create(out, load_config("digits", overrides=demo._QUICK)).log({"stage": 1, "step": 1})
    (out / "notes.txt").write_text("mine")

    def train(config, path, **_):
        run = Run.create(path, config)
        run.log({"stage": 2, "step": 2})
        return run

    def evaluate(run, **_):
        (run.path / "report.html").write_text("new")
        return {"seconds": 1}

    monkeypatch.setattr(demo, "train_run", train)
    monkeypatch.setattr(demo, "evaluate_run", evaluate)
    assert run_demo(out, seed=7) == {"seconds": 1}
    assert Run.open(out).config.seed == 7
    assert (out / "report.html").read_text() == "new"
    assert (out / "notes.txt").read_text() == "mine"
    assert Run.open(out).metrics() == [{"stage": 2, "step": 2}]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
