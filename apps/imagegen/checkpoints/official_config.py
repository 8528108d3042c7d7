"""The authors' config.yaml, asked key by key.

Their code fills a file up with defaults before it builds a model; whoever asks gives the same
default. Nothing in a file is executed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rqtoolkit.errors import ArtifactError, ConfigError

__all__ = ["MOST_LAYERS", "OfficialConfig"]

MOST_LAYERS = 1024
_MOST = 2**24  # no size in a sound file comes near it; larger ones would exhaust the memory
_MISSING = object()


class _Loader(yaml.SafeLoader):
    """Reads plain data, and two Python tags as the data they hold.

    The authors' reader takes files that were dumped from an EasyDict, its items in `dictitems`.
    """


def _easydict(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Any:
    return loader.construct_mapping(node, deep=True).get("dictitems", {})


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> Any:
    return loader.construct_sequence(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:python/object/new:easydict.EasyDict", _easydict)
_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


class OfficialConfig:
    """A configuration asked by dotted keys; every complaint names file and key.

    A null stands for a key that is not there, as in the authors' defaults.

    Args:
        tree: Sections by name, as YAML gives them.
        where: What to call the file in messages.
    """

    def __init__(self, tree: Mapping[str, Any], where: str) -> None:
        self.tree, self.where = tree, where
        self._asked: set[str] = set()

    @classmethod
    def read(cls, path: Path) -> "OfficialConfig":
        """Read a file.

        Raises:
            ArtifactError: If it is missing, no plain YAML (tags that name Python objects are none,
                but for EasyDict and tuple, of which the data are read), or no configuration.
        """
        try:
            tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        except FileNotFoundError:
            raise ArtifactError(
                f"import: {path} does not exist. It has to lie beside the checkpoint."
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ArtifactError(f"import: {path} is not plain YAML; got: {reason:.200}.") from None
        if not isinstance(tree, dict) or not isinstance(tree.get("arch"), dict):
            raise ArtifactError(
                f"import: {path} has no section arch; got {tree!r:.60}. Name the config.yaml that "
                f"was released with the checkpoint."
            )
        return cls(tree, f"import: {path}")

    def find(self, key: str, default: Any = _MISSING) -> Any:
        """Return a value of any type.

        Raises:
            ArtifactError: If it is not there and has no default.
        """
        self._asked.add(key)
        value: Any = self.tree
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
        if default is _MISSING:
            raise ArtifactError(
                f"{self.where}: {key} is missing; got no such key. Name the config.yaml that was "
                f"released with the checkpoint."
            )
        return default

    def unasked(self, section: str) -> list[str]:
        """Return the keys of a section, dotted, that nothing has asked for."""
        found, waiting = [], [section]
        while waiting:
            key = waiting.pop()
            value: Any = self.tree
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if key in self._asked or value is None:
                continue
            if isinstance(value, Mapping):
                waiting += [f"{key}.{name}" for name in value]
            else:
                found.append(key)
        return sorted(found)

    def wrong(self, key: str, value: Any, rule: str) -> ArtifactError:
        """Return the error for a value that breaks a rule."""
        return ArtifactError(
            f"{self.where}: {key}={value!r:.60} {rule}; got {type(value).__name__}. Correct the "
            f"file, or take the one that was released."
        )

    def count(self, key: str, default: Any = _MISSING, *, low: int = 1, most: int = _MOST) -> int:
        """Return an integer from `low` to `most`."""
        value = self.find(key, default)
        if type(value) is not int or not low <= value <= most:
            raise self.wrong(key, value, f"must be an integer from {low} to {most}")
        return value

    def counts(self, key: str, default: Any = _MISSING, *, length: int | None = None) -> list[int]:
        """Return a list of positive integers."""
        values = self.find(key, default)
        sound = isinstance(values, list | tuple) and len(values) <= MOST_LAYERS
        if not sound or not all(type(value) is int and 1 <= value <= _MOST for value in values):
            raise self.wrong(key, values, f"must be a list of integers from 1 to {_MOST}")
        if length is not None and len(values) != length:
            raise self.wrong(key, values, f"must hold {length} integers")
        return list(values)

    def sizes(self, key: str, depth: int, default: Any = _MISSING) -> int | list[int]:
        """Return one integer, or one per level where they differ."""
        if not isinstance(self.find(key, default), list):
            return self.count(key, default)
        sizes = self.counts(key, default, length=depth)
        return sizes[0] if len(set(sizes)) == 1 else sizes

    def number(
        self, key: str, default: Any = _MISSING, *, low: float = 0.0, most: float = 1e6
    ) -> float:
        """Return a number from `low` to `most`."""
        value = self.find(key, default)
        if type(value) not in (int, float) or not low <= value <= most:
            raise self.wrong(key, value, f"must be a number from {low:g} to {most:g}")
        return float(value)

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """Return true or false."""
        value = self.find(key, default)
        if type(value) is not bool:
            raise self.wrong(key, value, "must be true or false")
        return value

    def only(self, key: str, supported: Any, *, default: Any = None) -> None:
        """Refuse every value but one: another would be another architecture.

        Args:
            key: The key.
            supported: What it has to be.
            default: What the authors take where the key is missing; None is `supported` itself.

        Raises:
            ConfigError: If it is anything else.
        """
        value = self.find(key, supported if default is None else default)
        if type(value) is not type(supported) or value != supported:
            raise ConfigError(
                f"{self.where}: {key}={value!r:.60} has no counterpart here; got a model with "
                f"another value than {supported!r}. Only {key}: {supported!r} can be imported."
            )
