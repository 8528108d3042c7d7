"""The demo, shortened: what it writes, and that a seed fixes all of it."""

import json

import pytest

from imagegen.config import load_config
from imagegen.demo import run_demo
from imagegen.runs import Run
from rqtoolkit.errors import ConfigError


def files(folder):
    """Contents of every file of a demo but for the seconds it took."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
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
