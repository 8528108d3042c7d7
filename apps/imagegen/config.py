"""The configuration of a run as YAML: the only place that reads it.

Unknown keys are refused with the nearest known one, values by the ranges of `imagegen.settings`.
Nothing below this file takes a configuration object: stages unpack it into keyword arguments.
"""

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from imagegen.settings import Config, SamplingConfig
from rqtoolkit.errors import ConfigError

__all__ = [
    "change_sampling",
    "dump_config",
    "load_config",
    "parse_settings",
    "shipped_configs",
]

_WRITTEN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text, in quotes if it looks like something else",
}


def shipped_configs() -> dict[str, Path]:
    """Return the configurations that come with the package, by name."""
    folder = Path(str(resources.files("imagegen"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(
    source: str | Path,
    *,
    overrides: dict[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> Config:
    """Read a configuration and check every key, type and range.

    Args:
        source: A YAML file, or the name of a shipped configuration.
        overrides: Values that take precedence, keys dotted: {"data.path": "images.npz"}.
        names: What messages call them, as {"data.path": "train: --data"}; else by file and key.

    Returns:
        The configuration with defaults filled in.

    Raises:
        ConfigError: If the file is missing, no YAML, or holds unknown keys or values out of range.
    """
    path, names = Path(source), names or {}
    if path.is_dir():
        _refuse_folder(path)
    if not path.is_file():
        shipped = shipped_configs()
        if str(source) not in shipped:
            raise ConfigError(
                f"config: {source} is neither a file nor a shipped configuration; got no such "
                f"path. Shipped are: {', '.join(shipped)}."
            )
        path = shipped[str(source)]
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config: {path} is not readable YAML; got: {reason}.") from None
    if tree is None or tree == {}:
        raise ConfigError(
            f"config: {path} holds no settings; got an empty file. Write some, or name a shipped "
            f"configuration: {', '.join(shipped_configs())}."
        )
    if isinstance(tree, dict) and "name" not in tree:
        tree["name"] = path.stem
    for dotted, value in (overrides or {}).items():
        _check_sections(dotted, value, names.get(dotted, f"config {path.name}: {dotted}"))
        _override(tree, dotted.split("."), value)
    config = _build(Config, tree, f"config {path.name}", names=names)
    assert isinstance(config, Config)
    _check_together(config, f"{path.name} with {_list_options(names)}" if names else path.name)
    images = config.data.path
    if config.data.source != "huggingface" or (images and Path(images).expanduser().is_dir()):
        images = _absolute(images)  # else the name of a data set
    data = dataclasses.replace(
        config.data,
        path=images,
        held_out_path=_absolute(config.data.held_out_path),
        tokenizer=_absolute(config.data.tokenizer),
    )
    perceptual = dataclasses.replace(
        config.stage1.perceptual,
        vgg=_absolute(config.stage1.perceptual.vgg),
        heads=_absolute(config.stage1.perceptual.heads),
    )
    stage1 = dataclasses.replace(config.stage1, perceptual=perceptual)
    init_from = _absolute(config.init_from)
    return dataclasses.replace(config, data=data, stage1=stage1, init_from=init_from)


def _refuse_folder(path: Path) -> typing.NoReturn:
    if (path / "config.yaml").is_file():
        advice = f"Name {path / 'config.yaml'} for the configuration of the run in it."
    else:
        advice = (
            f"To train on images in it, name a configuration, such as digits, and add `--data "
            f"{path} --set data.source=folder`."
        )
    raise ConfigError(f"config: {path} must be a file; got a folder. {advice}")


def _list_options(names: Mapping[str, str]) -> str:
    """Return what options were given, for messages on values that are wrong together."""
    return ", ".join(dict.fromkeys(name.rpartition(": ")[2] for name in names.values()))


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read settings as the command line takes them, for `load_config` to override others with.

    Args:
        texts: Such as "stage1.steps=1000"; a value is YAML, the last of one key counts.

    Raises:
        ConfigError: If a text is no setting.
    """
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            parsed = yaml.load(value, _Loader)
        except yaml.YAMLError:
            equals = ""
        if not key.strip() or not equals:
            raise ConfigError(
                f"config: {text!r:.60} is no setting; got no KEY=VALUE with a value in YAML. Write "
                f"for example stage1.steps=1000."
            )
        if isinstance(parsed, dict):
            raise ConfigError(
                f"config: {key}={value:.40} must be one value; got a section. Set its keys one by "
                f"one, as in stage1.steps=1000."
            )
        settings[key.strip()] = parsed
    return settings


def change_sampling(config: Config, changes: dict[str, Any]) -> SamplingConfig:
    """Return the sampling settings of a configuration with some replaced, checked as YAML is.

    Raises:
        ConfigError: If a setting is unknown or out of its range.
    """
    tree = {**dataclasses.asdict(config.sampling), **changes}
    sampling = _build(SamplingConfig, tree, "sample")
    assert isinstance(sampling, SamplingConfig)
    dropout = config.transformer.label_dropout
    if sampling.cfg_scale != 1.0 and dropout == 0.0:
        raise ConfigError(
            f"sample: cfg_scale={sampling.cfg_scale} needs a model trained with label dropout; got "
            f"transformer.label_dropout=0. Leave --cfg-scale out, or train a model with "
            f"transformer.label_dropout=0.1."
        )
    changed = dataclasses.replace(config, sampling=sampling)
    _check_together(changed, config.name)
    return sampling


def dump_config(config: Config) -> str:
    """Return the YAML text that `load_config` reads back as the same configuration."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


class _Loader(yaml.SafeLoader):
    """Reads YAML and refuses a key that is there twice: one of its values would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} twice in one section", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def _check_sections(dotted: str, value: Any, name: str) -> None:
    """Refuse a setting below what is a value; unknown keys are left for `_build` to refuse."""
    kind: Any = Config
    keys = dotted.split(".")
    for place, key in enumerate(keys[:-1], start=1):
        kind = typing.get_type_hints(kind).get(key)
        if kind is None:
            return
        if not dataclasses.is_dataclass(kind):
            parent = ".".join(keys[:place])
            raise ConfigError(
                f"{name} is no known key; got {value!r:.40} below {parent}, which is a value and "
                f"no section. Set {parent}."
            )


def _override(tree: Any, keys: list[str], value: Any) -> None:
    """Set one value of a tree; what is no tree is left for `_build` to refuse."""
    for key in keys[:-1]:
        if not isinstance(tree, dict):
            return
        if tree.get(key) is None:  # a section left empty
            tree[key] = {}
        tree = tree[key]
    if isinstance(tree, dict):
        tree[keys[-1]] = value


def _build(
    kind: type, tree: Any, where: str, prefix: str = "", names: Mapping[str, str] | None = None
) -> Any:
    tree, names = {} if tree is None else tree, names or {}  # an empty section keeps its defaults
    if not isinstance(tree, dict):
        here = prefix.rstrip(".")
        place = names.get(here, f"{where}: {here or 'the file'}")
        raise ConfigError(
            f"{place} must hold keys and values; got {type(tree).__name__} {tree!r:.60}. Write "
            f"`key: value` lines."
        )
    known = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = names.get(f"{prefix}{key}", f"{where}: {prefix}{key}")
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            advice = f"Did you mean {prefix}{near[0]}?" if near else f"Known: {', '.join(known)}."
            raise ConfigError(f"{name} is no known key; got {value!r:.40}. {advice}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            section = typing.cast(type, hint)
            values[key] = _build(section, value, where, f"{prefix}{key}.", names)
        else:
            values[key] = _check(name, value, hint, known[key].metadata)
    return kind(**values)


def _check(name: str, value: Any, hint: Any, metadata: typing.Mapping[str, Any]) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None and types.NoneType in typing.get_args(hint):
            return None
        options = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        listed = isinstance(value, list | tuple)
        fitting = [kind for kind in options if (typing.get_origin(kind) is tuple) == listed]
        hint = (fitting or options)[0]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(
                f"{name}={value!r} must be a list; got {type(value).__name__}. Write [a, b]."
            )
        kinds = typing.get_args(hint)
        if kinds[-1] is not Ellipsis and len(value) != len(kinds):
            raise ConfigError(
                f"{name}={value!r} must hold {len(kinds)} values; got {len(value)}. Write "
                f"{len(kinds)}."
            )
        return tuple(_check(name, item, kinds[0], metadata) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    if type(value) is not hint:
        article = "an" if hint is int else "a"
        raise ConfigError(
            f"{name}={value!r:.60} must be {article} {hint.__name__}; got {type(value).__name__}. "
            f"Write {_WRITTEN[hint]}."
        )
    low, high, choices = (metadata.get(key) for key in ("low", "high", "choices"))
    if choices and value not in choices:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(choices)}. Choose one.")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ConfigError(f"{name}={value!r} is out of range; must be {bound}. Choose another.")
    return value


def _check_together(config: Config, name: str) -> None:
    """Refuse values that are fine alone and wrong together."""
    if config.transformer.dim % config.transformer.num_heads:
        raise ConfigError(
            f"config {name}: transformer.dim={config.transformer.dim} must divide by num_heads; "
            f"got {config.transformer.num_heads}. Choose dim as a multiple of it."
        )
    for key in ("temperature", "top_k", "top_p"):
        setting, depth = getattr(config.sampling, key), config.quantizer.depth
        if isinstance(setting, tuple) and len(setting) != depth:
            raise ConfigError(
                f"config {name}: sampling.{key}={list(setting)} must hold one number a level; got "
                f"{len(setting)} for quantizer.depth={depth}. Write one number, or {depth}."
            )
    sizes = config.quantizer.codebook_size
    if isinstance(sizes, tuple) and len(sizes) != config.quantizer.depth:
        raise ConfigError(
            f"config {name}: quantizer.codebook_size={list(sizes)} must hold one number a level; "
            f"got {len(sizes)} for depth={config.quantizer.depth}. Write one number for all."
        )
    guided = config.sampling.cfg_scale != 1.0
    if guided and config.transformer.label_dropout == 0.0:
        raise ConfigError(
            f"config {name}: sampling.cfg_scale={config.sampling.cfg_scale} needs a model trained "
            f"with label dropout; got transformer.label_dropout=0. Set it to 0.1."
        )
