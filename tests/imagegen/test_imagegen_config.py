"""Configurations: what they refuse, and how they say it."""

import pytest
import yaml

from imagegen.config import change_sampling, dump_config, load_config, shipped_configs
from imagegen.settings import Config
from rqtoolkit.errors import ConfigError


@pytest.fixture
def written(tmp_path):
    def write(text: str):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_shipped_configurations_survive_a_round_trip(name, written):
    config = load_config(name)
    assert config.name == name
    assert load_config(written(dump_config(config))) == config


def test_what_is_not_written_keeps_its_default(written):
    config = load_config(written("stage1: {steps: 7}"))
    assert config.stage1.steps == 7
    assert config.stage1.betas == Config().stage1.betas == (0.5, 0.9)
    assert config.name == "mine"
    assert load_config(written("stage1:")) == load_config(written("name: mine"))


def test_overrides_win_over_the_file(written):
    config = load_config(written("seed: 3"), overrides={"seed": 5, "stage2.steps": 2})
    assert (config.seed, config.stage2.steps) == (5, 2)


def test_overrides_meet_an_empty_section_and_a_list(written):
    assert load_config(written("data:"), overrides={"data.resolution": 8}).data.resolution == 8
    with pytest.raises(ConfigError, match="the file must hold keys and values; got list"):
        load_config(written("- a"), overrides={"seed": 1, "data.resolution": 8})
    with pytest.raises(ConfigError, match="data must hold keys and values; got list"):
        load_config(written("data: [1]"), overrides={"data.resolution": 8})


@pytest.mark.parametrize("key", ["stage1.steps.x", "data.path.foo", "stage1.betas.0.1"])
def test_an_override_below_a_value_is_refused(written, key):
    path = written("data: {source: npz, path: a.npz}\nstage1: {steps: 3, betas: [0.5, 0.9]}")
    parent = ".".join(key.split(".")[:2])
    with pytest.raises(ConfigError, match=rf"{key} is no known key; .* Set {parent}\.$"):
        load_config(path, overrides={key: 4})


def test_a_relative_path_of_images_becomes_absolute(written, tmp_path, monkeypatch):
    path = written("data: {source: npz, path: images.npz}")
    monkeypatch.chdir(tmp_path)
    assert load_config(path).data.path == str(tmp_path / "images.npz")


def test_sampling_takes_one_number_or_one_a_level(written):
    text = "sampling: {temperature: [1, 0.9, 0.8, 0.7], top_k: [0, 5, 5, 5], top_p: 0.9}"
    config = load_config(written(text))
    assert config.sampling.temperature == (1.0, 0.9, 0.8, 0.7)
    assert config.sampling.top_k == (0, 5, 5, 5)
    assert load_config(written(dump_config(config))) == config
    assert change_sampling(config, {"top_k": 3}).top_k == 3
    for change in ({"top_k": [1, 2]}, {"temperature": 1e-9}, {"cfg_scale": 1e9}, {"heat": 1}):
        with pytest.raises(ConfigError):
            change_sampling(config, change)


def test_numbers_may_be_written_with_an_exponent(written):
    # YAML 1.1 takes 1e-3, without a dot, for a string
    assert load_config(written("stage1: {learning_rate: 1e-3}")).stage1.learning_rate == 0.001
    assert load_config(written("stage1: {learning_rate: 1}")).stage1.learning_rate == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stage1: {learnin_rate: 1}",
            r"stage1\.learnin_rate .* Did you mean stage1\.learning_rate",
        ),
        ("stage3: {}", r"stage3 .* Did you mean stage"),
        ("qqqqqq: 1", r"Known: name, seed"),
        ("stage1: {steps: 0}", r"stage1\.steps=0 is out of range; must be between 1 and 10"),
        (
            "stage1: {batch_size: 10000000000}",
            r"batch_size=10000000000 is out of range; .* 1048576",
        ),
        ("autoencoder: {channels: 1000000}", r"channels=1000000 is out of range"),
        ("quantizer: {codebook_size: [64, 99999999]}", r"codebook_size=99999999 is out of range"),
        ("transformer: {dim: 10000000000}", r"dim=10000000000 is out of range"),
        ("stage1: {commitment_weight: .inf}", r"commitment_weight=inf is out of range"),
        (
            "stage1: {steps: 1.5}",
            r"stage1\.steps=1\.5 must be an int; got float\. Write a whole number\.$",
        ),
        ("stage1: {steps: true}", r"must be an int; got bool\. Write a whole number\.$"),
        ("stage1: {learning_rate: fast}", r"must be a float; got str\. Write a number\.$"),
        ("stage1: {learning_rate: .nan}", r"out of range; .*\. Choose another\.$"),
        ("data: {flip: 1}", r"must be a bool; got int\. Write true or false\.$"),
        ("data: {path: 3}", r"must be a str; got int\. Write a text"),
        ("stage1: {betas: [0.5]}", r"must hold 2 values; got 1\. Write 2\.$"),
        ("stage1: {betas: 0.5}", r"must be a list; got float\. Write \[a, b\]\.$"),
        ("stage1: 7", r"stage1 must hold keys and values; got int 7"),
        ("[1, 2]", r"the file must hold keys and values"),
        ("autoencoder: {multipliers: [1, 0]}", r"multipliers=0 is out of range"),
        ("transformer: {dim: 10, num_heads: 4}", r"transformer\.dim=10 must divide by num_heads"),
        ("sampling: {cfg_scale: 2.0}", r"needs a model trained with label dropout"),
        ("data: {source: web}", r"data\.source='web' is not one of digits, npz, folder"),
        ("a: [", r"not readable YAML"),
        ("", r"mine\.yaml holds no settings; got an empty file\. .*, digits, "),
        ("# seed: 1", r"mine\.yaml holds no settings"),
        ("seed: 1\nseed: 2", r"the key 'seed' twice in one section"),
        ("stage1: {steps: 1, steps: 2}", r"the key 'steps' twice"),
        ("sampling: {top_k: [1, 2, 3]}", r"top_k=\[1, 2, 3\] must hold one number a level"),
        ("sampling: {top_k: [1, 2, 3, -4]}", r"top_k=-4 is out of range"),
        ("sampling: {temperature: null}", r"must be a float; got NoneType"),
    ],
)
def test_mistakes_are_named_in_one_line(written, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(written(text))
    assert "\n" not in str(caught.value)


def test_an_unknown_configuration_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"Shipped are: .*digits"):
        load_config("digit")


def test_every_shipped_file_says_how_to_launch_it():
    for name, path in shipped_configs().items():
        text = path.read_text()
        assert f"rqtool imagegen train {name} " in text
        assert yaml.safe_load(text)
