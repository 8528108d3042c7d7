"""`rqtool imagegen train`: settings from the command line, and what they may not be."""

import pytest
from test_imagegen_cli import invoke
from test_training import small

from imagegen.config import dump_config, parse_settings
from imagegen.runs import Run
from rqtoolkit.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(dump_config(small()))
    return path


def test_settings_are_yaml_and_the_last_counts():
    texts = ["a.b=3", "a.b=4", "c=[1, 2]", "d=1e-3", "e=", "f=null", "g=x=y", "h = true"]
    assert parse_settings(texts) == {
        "a.b": 4,
        "c": [1, 2],
        "d": "1e-3",  # YAML 1.1; load_config makes it a number where one is wanted
        "e": None,
        "f": None,
        "g": "x=y",
        "h": True,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage1.steps", "'stage1.steps' is no setting; got no KEY=VALUE"),
        ("=3", "'=3' is no setting"),
        ("a=[1", r"'a=\[1' is no setting"),
        ("stage1={steps: 3}", "stage1={steps: 3} must be one value; got a section"),
    ],
)
def test_what_is_no_setting_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings([text])


def test_set_overrides_any_key_and_init_from_names_a_run(config, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    changes = ("--set", "stage1.learning_rate=2e-3", "--set", "stage1.betas=[0.5, 0.8]")
    printed = invoke("train", config, "--out", first, "--stage", "1", *changes, "--seed", "4")
    assert printed == f"Trained: {first}\n"
    settings = Run.open(first).config
    assert (settings.stage1.learning_rate, settings.stage1.betas) == (2e-3, (0.5, 0.8))
    assert settings.seed == 4
    invoke("train", config, "--out", second, "--stage", "1", "--init-from", first)
    assert Run.open(second).config.init_from == str(first)
    assert (second / "initial.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "stage1.step=3"], r"^train: --set stage1\.step is no .* mean stage1\.steps"),
        (["--set", "stage1.steps=0"], r"^train: --set stage1\.steps=0 is out of range"),
        (["--set", "stage1=3"], r"^train: --set stage1 must hold keys and values; got int 3"),
        (["--set", "seed.x=3"], r"^train: --set seed\.x is no known key; got 3 below seed"),
        (["--seed", "-1"], r"^train: --seed=-1 is out of range; must be between 0 and"),
        (
            ["--set", "transformer.dim=30", "--set", "transformer.num_heads=4", "--seed", "1"],
            r"^config mine\.yaml with --set transformer\.dim, .*, --seed: transformer\.dim=30",
        ),
        (["--set", "data.held_out=1000000"], r"held_out=1000000 must be a share"),
    ],
)
def test_a_wrong_option_is_named(config, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        invoke("train", config, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_a_folder_is_no_configuration(config, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConfigError, match=r"photos --set data\.source=folder`"):
        invoke("train", tmp_path / "photos", "--out", tmp_path / "run")
    (tmp_path / "photos" / "config.yaml").write_text(config.read_text())
    with pytest.raises(ConfigError, match=r"Name .*photos/config\.yaml for the configuration"):
        invoke("train", tmp_path / "photos", "--out", tmp_path / "run")


def test_a_run_resumed_with_another_setting_is_told_which(config, tmp_path):
    out = tmp_path / "run"
    invoke("train", config, "--out", out, "--stage", "1")
    invoke("train", config, "--out", out, "--stage", "1", "--resume", "--set", "stage1.log_every=2")
    with pytest.raises(ConfigError, match=r"got stage2\.batch_size=4, it had 8\. Resume with"):
        invoke("train", config, "--out", out, "--resume", "--set", "stage2.batch_size=4")


def test_batches_that_do_not_divide_are_refused(config, tmp_path):
    with pytest.raises(ConfigError, match=r"stage2\.batch_size=8 must divide .*; got 3 × 1"):
        invoke("train", config, "--out", tmp_path / "run", "--set", "stage2.accumulate=3")
    assert not (tmp_path / "run").exists()
