"""Training that starts from finished models in place of random weights, as LSUN from ImageNet."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from imagegen.distributed import copy_into
from imagegen.runs import Run
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.io.artifact import differences, read_artifact
from rqtoolkit.io.atomic import atomic_path

__all__ = ["check_initial", "initialize"]

_MODELS = {1: ("RQVAE", "rqvae.safetensors"), 2: ("RQTransformer", "rqtransformer.safetensors")}


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
    recorded = run.path / "initial.json"
    origins = json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else {}
    with path.open("rb") as file:
        origin = {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    before = origins.setdefault(f"stage{stage}", origin)
    if before["sha256"] != origin["sha256"]:
        raise ArtifactError(
            f"init_from: {path} is not the file that {run.path} was started from; got another "
            f"checksum than {recorded} has. Bring it back, or train in a new folder."
        )
    run.ranks.wait()  # all have read before the first writes
    if run.ranks.main:
        with atomic_path(recorded) as temporary:
            temporary.write_text(json.dumps(origins, indent=2) + "\n", encoding="utf-8")
