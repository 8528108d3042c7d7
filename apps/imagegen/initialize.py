"""Training that starts from finished models in place of random weights, as LSUN from ImageNet."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from imagegen.distributed import copy_into
from imagegen.runs import Run
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.io.artifact import differences, read_artifact
from rqtoolkit.io.atomic import atomic_path

__all__ = ["adopt_stage1", "check_initial", "initialize", "offers"]

_MODELS = {1: ("RQVAE", "rqvae.safetensors"), 2: ("RQTransformer", "rqtransformer.safetensors")}


def offers(source: str | None, stage: int) -> bool:
    """Return whether a source, such as `init_from`, has a finished model of a stage.

    Raises:
        ArtifactError: If it is a file that holds no model, or a folder without a finished stage 1.
    """
    return source is not None and _find(source, stage) is not None


def check_initial(source: str, stage: int, module: nn.Module) -> None:
    """Refuse models that do not fit the configured ones, before anything is made.

    Args:
        source: A run, imported releases included, or one of its model files alone.
        stage: Stage that would start from it; models of the other one concern it not.
        module: Model of the configuration; it may be on the meta device.

    Raises:
        ArtifactError: If there is no such model, or its file is damaged.
        ConfigError: If tensors are missing, left over or of other shapes; they are named.
    """
    path = _find(source, stage)
    if path is not None:
        _read(path, stage, module)


def initialize(run: Run, stage: int, module: nn.Module) -> None:
    """Fill a model with the weights that `init_from` of the run's configuration names.

    The RQ-VAE is taken whole, its codebooks with how often each entry is used. The RQ-Transformer
    keeps the codewords it has: those of the RQ-VAE it is trained for. Where the models came from is
    recorded in initial.json with their checksums, so that a run that was killed before its first
    checkpoint begins from the same ones again.

    Args:
        run: The run.
        stage: 1 or 2.
        module: What is trained, perhaps divided over processes.

    Raises:
        ArtifactError: If there is no such model, its file is damaged, or has changed since.
        ConfigError: If it does not fit.
    """
    source = run.config.init_from
    path = None if source is None else _find(source, stage)
    if path is None:
        return
    tensors = _read(path, stage, module)
    _record(run, stage, path)
    if stage == 1:
        module.load_state_dict(tensors)
    else:
        for name, parameter in module.named_parameters():
            copy_into(parameter, tensors[name])


def adopt_stage1(run: Run) -> None:
    """Take the RQ-VAE of `init_from` as it is for the finished stage 1 of a run without one.

    Several transformers can so be trained on the codes of one RQ-VAE. Called by one process.

    Raises:
        ArtifactError: If there is no such model, or it has changed since the run began.
    """
    path = _find(run.config.init_from or "", 1)
    assert path is not None, "ask `offers` first"
    _write_origin(run, 1, _origin(run, 1, path))
    with atomic_path(run.autoencoder_path) as temporary:
        shutil.copyfile(path, temporary)


def _find(source: str, stage: int) -> Path | None:
    """Return the file that a stage starts from, None where the source is for the other stage."""
    path, (kind, name) = Path(source), _MODELS[stage]
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                found = (file.metadata() or {}).get("class")
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"init_from: {path} is not readable; got {error}. Name a run, or a model in its "
                f"checkpoints."
            ) from error
        if found not in {model for model, _ in _MODELS.values()}:
            raise ArtifactError(
                f"init_from: {path} holds no finished model; got class={found!r}. Name a run, or "
                f"the rqvae.safetensors or rqtransformer.safetensors in its checkpoints."
            )
        return path if found == kind else None
    finished = path / "checkpoints" / name
    if finished.is_file():
        return finished
    if stage == 1:
        raise ArtifactError(
            f"init_from: {path} has no finished stage 1; got no checkpoints/{name}. Name a run, or "
            f"what `rqtool imagegen import` wrote."
        )
    return None


def _read(path: Path, stage: int, module: nn.Module) -> Mapping[str, Tensor]:
    """Return the tensors of a finished model that is of the architecture of `module`."""
    _, tensors = read_artifact(path, class_name=_MODELS[stage][0])
    expected = dict(module.state_dict() if stage == 1 else module.named_parameters())
    if stage == 2:
        tensors = {k: v for k, v in tensors.items() if k not in dict(module.named_buffers())}
    complaints = differences(expected, tensors)
    if complaints:
        shown = "; ".join(complaints[:5]) + "; …" * (len(complaints) > 5)
        raise ConfigError(
            f"init_from: {path} is not of the architecture that stage {stage} is configured for; "
            f"got {shown}. Change the configuration, or name the model file of one stage alone."
        )
    return tensors


def _record(run: Run, stage: int, path: Path) -> None:
    """Keep where a stage started; every process calls this."""
    origin = _origin(run, stage, path)
    run.ranks.wait()  # all have read before the first writes
    if run.ranks.main:
        _write_origin(run, stage, origin)


def _origin(run: Run, stage: int, path: Path) -> dict[str, str]:
    """Return path and checksum of a file, which must be the one this stage was started from."""
    with path.open("rb") as file:
        origin = {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    before = _origins(run).get(f"stage{stage}", origin)
    if before["sha256"] != origin["sha256"]:
        raise ArtifactError(
            f"init_from: {path} is not the file that {run.path} was started from; got another "
            f"checksum than initial.json has. Bring it back, or train in a new folder."
        )
    return before


def _origins(run: Run) -> dict[str, dict[str, str]]:
    recorded = run.path / "initial.json"
    return json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else {}


def _write_origin(run: Run, stage: int, origin: dict[str, str]) -> None:
    origins = {**_origins(run), f"stage{stage}": origin}
    with atomic_path(run.path / "initial.json") as temporary:
        temporary.write_text(json.dumps(origins, indent=2) + "\n", encoding="utf-8")
