"""What a training needs to go on, on disk: one file a checkpoint, the last few of them kept.

A file holds whole tensors however many processes share them, so any number of processes, under DDP
or FSDP, goes on from what any other left. Randomness needs no state: see `imagegen.training`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from imagegen.distributed import copy_into, gathered, is_divided, own_share
from imagegen.runs import Run
from rqtoolkit.errors import ArtifactError
from rqtoolkit.io.artifact import check_tensors, read_artifact, write_artifact

__all__ = ["TrainingState", "WeightAverage", "checkpoints", "load_state", "save_state", "writing"]


class WeightAverage:
    """Exponential moving average of a module's parameters; buffers follow as they are.

    Its memory grows with the steps, to about a ninth of them, so that early ones do not linger.

    Args:
        module: What to average.
        decay: Weight of the past; 0 keeps the current parameters, and no copy of them.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.count = module, decay, 0
        self.values = self._copies() if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current parameters."""
        decay = min(self.decay, self.count / (self.count + 9))
        parameters = dict(self.module.named_parameters())
        for name, value in self.values.items():
            own_share(value).lerp_(own_share(parameters[name].detach()), 1 - decay)
        self.count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in place of the parameters, in eval mode, while the block runs."""
        current = self._copies() if self.decay else {}
        was_training = self.module.training
        self._write(self.values)
        self.module.eval()
        try:
            yield
        finally:
            self._write(current)
            self.module.train(was_training)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        parameters = dict(self.module.named_parameters())
        for name, value in values.items():
            own_share(parameters[name]).copy_(own_share(value))

    def _copies(self) -> dict[str, Tensor]:
        return {k: p.detach().clone() for k, p in self.module.named_parameters()}


@dataclass(frozen=True)
class TrainingState:
    """Everything that changes while a stage trains.

    Attributes:
        models: Modules by name, as `imagegen.distributed.trained` gives them.
        optimizers: The optimizer of each, under the same names.
        average: Average of the weights of the first.
    """

    models: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    average: WeightAverage

    def tensors(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Return whole tensors by name, on the CPU; every process must ask, with keep or without.

        Args:
            keep: False takes part in gathering and returns nothing.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in self._live():
            whole = gathered(tensor.detach())
            if keep:
                found[name] = whole.cpu()
        return found

    def load(self, tensors: Mapping[str, Tensor], averaged: int) -> None:
        """Take the place of what `tensors` returned after `averaged` updates of the average."""
        for name, model in self.models.items():
            own = model.state_dict()
            shares = {k for k, v in own.items() if is_divided(v)}
            for key in shares:
                copy_into(own[key], tensors[f"model.{name}.{key}"])
            whole = {k: tensors[f"model.{name}.{k}"] for k in own if k not in shares}
            model.load_state_dict(whole, strict=not shares)
            _load_optimizer(self.optimizers[name], model, f"optimizer.{name}.", tensors)
        for key, value in self.average.values.items():
            copy_into(value, tensors[f"average.{key}"])
        self.average.count = averaged

    def expected(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the shapes that a file must hold to be loaded here."""
        expected = {}
        for name, model in self.models.items():
            for key, value in model.state_dict().items():
                key = f"model.{name}.{key}"
                grows = not value.numel() and key in found  # vectors gathered for k-means
                expected[key] = found[key] if grows else value
            moments = _moments(self.optimizers[name])
            for key, parameter in model.named_parameters():
                prefix = f"optimizer.{name}.{key}"
                # Parameters that never had a gradient have no state.
                if any(f"{prefix}.{moment}" in found for moment in moments):
                    expected |= {f"{prefix}.{moment}": parameter for moment in moments}
                    expected[f"{prefix}.step"] = torch.zeros(())
        return expected | {f"average.{k}": v for k, v in self.average.values.items()}

    @contextmanager
    def finished(self, plain: nn.Module, run: Run) -> Iterator[None]:
        """Put the averaged weights into the module that `spread` was given, while the block runs.

        It is in eval mode then, on the run's device. Every process must take part; weights that
        are divided over them come to the first alone.

        Args:
            plain: That module.
            run: The run.
        """
        module = self.average.module
        if plain is module:
            with self.average.applied():
                yield
            return
        into = plain.state_dict()
        parameters = {k: p.detach() for k, p in module.named_parameters()}
        sources = dict(module.named_buffers()) | parameters | self.average.values
        for key, value in sources.items():
            whole = gathered(value)
            if run.ranks.main:
                into[key].copy_(whole)
        if run.ranks.main:
            plain.to(run.device).eval()
        yield
        if run.ranks.main:
            plain.to("cpu")

    def _live(self) -> Iterator[tuple[str, Tensor]]:
        for name, model in self.models.items():
            for key, value in model.state_dict().items():
                yield f"model.{name}.{key}", value
            optimizer = self.optimizers[name]
            for key, parameter in model.named_parameters():
                for moment, value in optimizer.state.get(parameter, {}).items():
                    yield f"optimizer.{name}.{key}.{moment}", value
        for key, value in self.average.values.items():
            yield f"average.{key}", value


def _moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Return what Adam and AdamW, the optimizers of both stages, keep of a parameter."""
    amsgrad = any(group.get("amsgrad") for group in optimizer.param_groups)
    return ("step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))


def _load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, prefix: str, tensors: Mapping[str, Tensor]
) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for index, parameter in enumerate(parameters):
        for moment in _moments(optimizer):
            stored = tensors.get(f"{prefix}{names[parameter]}.{moment}")
            if stored is None:
                continue
            if stored.shape == parameter.shape and moment != "step":
                value = torch.zeros_like(parameter)
                copy_into(value, stored)
                stored = value
            state.setdefault(index, {})[moment] = stored.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def checkpoints(run: Run, stage: int) -> list[Path]:
    """Return the checkpoints of a stage that are on disk, oldest first."""
    return sorted(run.checkpoints.glob(f"stage{stage}-[0-9]*.safetensors"))


def save_state(run: Run, stage: int, step: int, state: TrainingState, *, keep: int) -> None:
    """Write a checkpoint and remove all but the last `keep`; every process must take part.

    Raises:
        ArtifactError: If it cannot be written; the earlier ones are then as they were.
    """
    tensors = state.tensors(keep=run.ranks.main)
    if not run.ranks.main:
        return
    path = run.checkpoints / f"stage{stage}-{step:07d}.safetensors"
    with writing(run, stage), run.metrics_path.open("ab") as log:
        os.fsync(log.fileno())  # a checkpoint must not survive a power cut that its log did not
    arguments = {"step": step, "averaged": state.average.count}
    with writing(run, stage):
        write_artifact(path, class_name="Training", arguments=arguments, tensors=tensors)
        for old in checkpoints(run, stage)[:-keep]:
            old.unlink()


def load_state(run: Run, stage: int, state: TrainingState) -> int:
    """Put back the last checkpoint of a stage and return the steps done; 0 where there is none.

    Raises:
        ArtifactError: If the file is damaged, of another model, or of an earlier version.
    """
    earlier = run.checkpoints / f"stage{stage}.safetensors"
    if earlier.exists():
        raise ArtifactError(
            f"run: {earlier} is a checkpoint of an earlier rqtoolkit, whose layout differs; got no "
            f"stage{stage}-STEP.safetensors. Remove it to train this stage anew."
        )
    found = checkpoints(run, stage)
    if not found:
        return 0
    path = found[-1]
    try:
        arguments, tensors = read_artifact(path, class_name="Training")
        check_tensors(path, state.expected(tensors), tensors)
        if not all(isinstance(arguments.get(name), int) for name in ("step", "averaged")):
            raise ArtifactError(f"load: {path} is not a training's; got {arguments!r:.60}.")
    except ArtifactError as error:
        before = found[-2].name if len(found) > 1 else "the start of the stage"
        raise ArtifactError(
            f"{error} To go on from {before}, remove the file (`rm {path}`) and --resume again."
        ) from error
    state.load(tensors, arguments["averaged"])
    return int(arguments["step"])


@contextmanager
def writing(run: Run, stage: int) -> Iterator[None]:
    """Turn a failed write, as on a full disk, into one line that says what is left.

    Raises:
        ArtifactError: If the block raises OSError.
    """
    try:
        yield
    except OSError as error:
        found = checkpoints(run, stage)
        last = f"the last checkpoint, {found[-1].name}, is whole" if found else "none was written"
        raise ArtifactError(
            f"train: {run.path} cannot be written in stage {stage}; got {error.strerror or error}. "
            f"Of the checkpoints {last}. Make room, or access, and go on with --resume."
        ) from error
