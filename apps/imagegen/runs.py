"""Runs as folders that are readable without us.

They hold config.yaml, split.json, metrics.jsonl, checkpoints/ and samples/.
"""

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from imagegen.config import dump_config, load_config
from imagegen.distributed import Ranks
from imagegen.settings import Config
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.io.atomic import atomic_path

if sys.platform != "win32":
    import fcntl

__all__ = ["LOCK", "Run", "deferred_interrupt", "exclusive", "interruption", "resolve_device"]

LOCK = ".lock"  # lies in every run folder, for `exclusive`
_FOLDERS = ("checkpoints", "samples", "cache", "tensorboard", "wandb")
_FILES = (
    "split.json",
    "tokenizer.json",
    "initial.json",
    "perceptual.json",
    "metrics.jsonl",
    "metrics.json",
    "unreadable.jsonl",
    "report.html",
    "wandb-id.txt",
)

# Settings that change no result, or only its rounding: a run may go on with others.
_FREE = (
    {"name", "device", "parallel", "tensorboard", "wandb"}
    | {"data.path", "data.held_out_path", "data.tokenizer", "data.workers", "data.corrupt"}
    | {
        "stage1.perceptual.vgg",  # the checksums of these files must not change, see stage1
        "stage1.perceptual.heads",
        "stage1.channels_last",
        "stage1.checkpointing",
        "stage2.checkpointing",
    }
    | {
        f"{stage}.{name}"
        for stage in ("stage1", "stage2")
        for name in (
            "loss_limit",
            "gradient_limit",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "sample_every",
        )
    }
)


class Run:
    """A training run on disk.

    Attributes:
        path: Folder of the run.
        config: Its resolved configuration.
        ranks: Which of several processes this is; the first alone writes.
        device: Where its models live.
        unreadable_path: Images that could not be read, for `imagegen.data.BrokenImages`.
        cache: Folder of `imagegen.code_cache`, where the configuration asks for one.
        autoencoder_path: Finished RQ-VAE, an artifact of `imagegen.autoencoder.RQVAE`.
        transformer_path: Finished RQ-Transformer, an artifact of `rqtoolkit.RQTransformer`.
    """

    def __init__(self, path: Path, config: Config, ranks: Ranks | None = None) -> None:
        self.path, self.config = path, config
        self.ranks = ranks or Ranks()
        self.device = resolve_device(config.device, self.ranks.local_rank)
        self.checkpoints, self.samples = path / "checkpoints", path / "samples"
        self.cache = path / "cache"
        self.metrics_path = path / "metrics.jsonl"
        self.unreadable_path = path / "unreadable.jsonl"
        self.autoencoder_path = self.checkpoints / "rqvae.safetensors"
        self.transformer_path = self.checkpoints / "rqtransformer.safetensors"

    @classmethod
    def create(
        cls, path: str | Path, config: Config, *, resume: bool = False, replace: bool = False
    ) -> "Run":
        """Make the folder of a new run, or open it again to go on.

        Args:
            path: Folder of the run.
            config: What to train.
            resume: Go on where an earlier run of the same configuration stopped.
            replace: Remove what an earlier run left in the folder, and nothing else in it.

        Raises:
            ConfigError: As `Run.check` does.
        """
        run = cls.check(path, config, resume=resume, replace=replace)
        existing = run.path / "config.yaml"
        if replace and existing.exists():
            for name in _FOLDERS:
                shutil.rmtree(run.path / name, ignore_errors=True)
            for name in _FILES:
                (run.path / name).unlink(missing_ok=True)
        for folder in (run.checkpoints, run.samples):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (run.path, run.checkpoints, run.samples):
            for unfinished in folder.glob(".*.partial*"):  # of a process killed while it wrote
                unfinished.unlink()
        with atomic_path(existing) as temporary:
            temporary.write_text(dump_config(config), encoding="utf-8")
        return run

    @classmethod
    def check(
        cls, path: str | Path, config: Config, *, resume: bool = False, replace: bool = False
    ) -> "Run":
        """Return the run that `create` would make, and leave the disk as it is.

        What changes no result may change between a run and its resumption: where the images lie,
        the device, how often to report and save, limits, and how processes share the work.

        Args:
            path: Folder of the run.
            config: What to train.
            resume: As for `create`.
            replace: As for `create`.

        Raises:
            ConfigError: If the folder cannot be made, holds a run already and it is neither
                resumed nor replaced, or holds one of another configuration.
        """
        path = Path(path)
        existing = path / "config.yaml"
        if existing.exists():
            if not resume and not replace:
                raise ConfigError(
                    f"run: {path} holds a run already; got no --resume. Pass --resume to go on "
                    f"with it, or choose another folder."
                )
            changed = [] if replace else _changes(load_config(existing), config)
            if changed:
                raise ConfigError(
                    f"run: {path} was started with another configuration; got "
                    f"{'; '.join(changed)}. Resume with {existing}, or choose another folder."
                )
        elif path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - {LOCK}):
            raise ConfigError(
                f"run: {path} is not an empty folder and holds no run. Choose another folder."
            )
        nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise ConfigError(
                f"run: {path} cannot be made; got {nearest}, which is no folder to write into. "
                f"Choose another folder."
            )
        return cls(path, config)

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open a run to read from it.

        Raises:
            ArtifactError: If the folder holds no run.
            ConfigError: If its configuration is damaged.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise ArtifactError(
                f"run: {path} is not a run; got no config.yaml in it. Pass a folder that `rqtool "
                f"imagegen train` or `rqtool demo` wrote."
            )
        try:
            config = load_config(path / "config.yaml")
        except ConfigError as error:
            raise ConfigError(f"run: {path} has a damaged config.yaml; got: {error}") from None
        return cls(path, config)

    def require(self, path: Path, stage: int) -> Path:
        """Return `path` if that stage has finished.

        Raises:
            ArtifactError: If it has not.
        """
        if not path.is_file():
            config = self.path / "config.yaml"
            advice = f"Run `rqtool imagegen train {config} --out {self.path} --resume`."
            if not config.is_file():
                advice = "Train it with `--stage 1` first, or name a finished one by --init-from."
            raise ArtifactError(
                f"run: stage {stage} of {self.path} is not finished; got no {path.name}. {advice}"
            )
        return path

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, a last one that was cut off left out.

        Raises:
            ArtifactError: If another line is damaged.
        """
        if not self.metrics_path.exists():
            return []
        text = self.metrics_path.read_text(encoding="utf-8", errors="replace")
        records = []
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            if not line.endswith("\n"):
                continue
            try:
                record = json.loads(line)
                _ = record["stage"], record["step"]
            except (ValueError, TypeError, KeyError):
                raise ArtifactError(
                    f"run: line {number} of {self.metrics_path} is no record of a step; got "
                    f"{line.strip()!r:.60}. Remove the line."
                ) from None
            records.append(record)
        return records

    def forget_after(self, stage: int, step: int) -> None:
        """Drop the lines of a stage beyond a step: resuming writes them again."""
        kept = [m for m in self.metrics() if m["stage"] != stage or m["step"] <= step]
        if self.metrics_path.exists():
            with atomic_path(self.metrics_path) as temporary:
                temporary.write_text("".join(json.dumps(m) + "\n" for m in kept), encoding="utf-8")


def _changes(before: Config, now: Config) -> list[str]:
    """Return how a configuration differs from a run's own, but for what changes no result."""
    old, new = _settings(before), _settings(now)
    return [
        f"{name}={new[name]!r}, it had {old[name]!r}"
        for name in old
        if old[name] != new[name] and name not in _FREE
    ]


def _settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return every setting by its dotted name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        found |= _settings(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


def resolve_device(name: str, number: int = 0) -> torch.device:
    """Return the device of that name; "auto" takes an accelerator where there is one.

    Args:
        name: As in `Config.device`.
        number: Which of several accelerators.

    Raises:
        ConfigError: If the device asked for is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        found = ", ".join(device for device, is_there in there.items() if is_there)
        raise ConfigError(f"config: device={name} is not there; got {found}. Use device: auto.")
    return torch.device(name, number) if name == "cuda" else torch.device(name)


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Keep any other process from training in a folder, which is made, while the block runs.

    The kernel releases the lock when the process ends, however it does. Where it has no such locks,
    as on Windows and some network file systems, nobody is kept out. A folder that was made for the
    lock, and in which the block left nothing, is removed again.

    Args:
        path: Folder of a run.

    Raises:
        ConfigError: If another process trains there, or the folder cannot be made.
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK).open("ab")
    except OSError as error:
        raise ConfigError(
            f"run: --out {path} cannot be made or written into; got {error.strerror}. Choose "
            f"another folder."
        ) from error
    with file:
        if not _lock(file):
            raise ConfigError(
                f"run: {path} is in use; got another process trains in this folder. Wait "
                f"for it, stop it, or choose another folder."
            )
        try:
            yield
        finally:
            if missing and [left.name for left in path.iterdir()] == [LOCK]:
                with suppress(OSError):  # somebody has put something there since
                    (path / LOCK).unlink()
                    for folder in missing:
                        folder.rmdir()


def _lock(file: IO[bytes]) -> bool:
    """Lock a file and return whether this process has it alone, as far as can be told."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return os.fstat(file.fileno()).st_nlink > 0  # or who made the folder is just removing it


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], int]]:
    """Hold back Ctrl-C, and the signal that clusters end jobs with, so that no step is cut in half.

    Yields a function that says which signal came, 0 for none: the loop asks it between steps and
    raises `interruption` of it. A second Ctrl-C strikes at once. Outside the main thread, where
    signals do not arrive, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    came: list[int] = []
    held: tuple[int, int] = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in held}

    def hold(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and number in came:
            signal.signal(number, previous[number])
            os.kill(os.getpid(), number)
        came.append(number)

    for number in previous:
        signal.signal(number, hold)
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if came:  # after the last question
        raise interruption(came[0])


def interruption(number: int) -> BaseException:
    """Return what a signal raises: KeyboardInterrupt for Ctrl-C, else SystemExit with its code."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
