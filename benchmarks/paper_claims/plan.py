"""What is trained for which claim: a flat list, so that a training serves several claims."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DATA", "PARTS", "TASKS", "Task", "ordered", "remaining"]

DATA = {"fashion": (0, 1, 2), "cifar": (0,)}
"""The data sets with the seeds each is trained with."""


@dataclass(frozen=True)
class Task:
    """One training, or the timing of two finished ones.

    Attributes:
        name: What its result is called.
        kind: "stage1", "stage2" or "timing".
        settings: What it changes in base.yaml, by dotted key.
        needs: Tasks whose models it starts from: stage 2 needs its stage 1, timing two stages 2.
        rows: Training images it learns from; None for all.
    """

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    rows: int | None = None


def _stage1(name: str, **settings: Any) -> Task:
    return Task(name, "stage1", {key.replace("__", "."): v for key, v in settings.items()})


def _soft(tau: float, *, relative: bool = True) -> dict[str, Any]:
    """Change stage 2 to soft targets and stochastic codes, by default with a tau that scales."""
    both = {"stage2.soft_targets": True, "stage2.stochastic_codes": True}
    return {**both, "stage2.tau": tau, "stage2.relative_tau": relative}


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _stage1("depth4"),
        _stage1("depth1", quantizer__depth=1),
        _stage1("depth2", quantizer__depth=2),
        _stage1("depth8", quantizer__depth=8),
        _stage1("size64", quantizer__depth=1, quantizer__codebook_size=64),
        _stage1("size1024", quantizer__depth=1, quantizer__codebook_size=1024),
        _stage1("size4096", quantizer__depth=1, quantizer__codebook_size=4096),
        # 2 codes of 64 are the 12 bits of one code of 4096
        _stage1("depth2-size64", quantizer__depth=2, quantizer__codebook_size=64),
        _stage1("per-depth", quantizer__shared_codebook=False),
        Task("hard", "stage2", {}, ("depth4",)),
        Task("soft-0.0005", "stage2", _soft(0.0005), ("depth4",)),
        Task("soft-0.002", "stage2", _soft(0.002), ("depth4",)),
        Task("soft-paper", "stage2", _soft(0.5, relative=False), ("depth4",)),
        # few images, each seen 32 times, should favour what keeps a model from learning by heart
        Task("hard-few", "stage2", {}, ("depth4",), rows=1000),
        Task("soft-few", "stage2", _soft(0.002), ("depth4",), rows=1000),
        # 8x8 positions of one code; the last level as wide as in the other
        _stage1("long", autoencoder__multipliers=[1, 2, 8], quantizer__depth=1),
        Task("long-hard", "stage2", {}, ("long",)),
        Task("sampling-time", "timing", {}, ("hard", "long-hard")),
        _stage1("vq", autoencoder__bottleneck="vq", quantizer__depth=1),
        _stage1("kl", autoencoder__bottleneck="kl"),
        _stage1("kl-strong", autoencoder__bottleneck="kl", stage1__kl_weight=1e-4),
    )
}

PARTS: dict[str, tuple[str, ...]] = {
    "depth": (
        "depth1",
        "depth2",
        "depth4",
        "depth8",
        "size64",
        "size1024",
        "size4096",
        "depth2-size64",
    ),
    "shared": ("depth4", "per-depth"),
    "soft": ("hard", "soft-0.0005", "soft-0.002", "soft-paper", "hard-few", "soft-few"),
    "grid": ("depth4", "long", "hard", "long-hard", "sampling-time"),
    "lineage": ("kl", "kl-strong", "vq", "depth4"),
}
"""The claims, each with the tasks whose results it compares."""


def ordered(names: Iterable[str]) -> list[Task]:
    """Return the tasks of these names and all they need, each once, needs first."""
    found: dict[str, Task] = {}

    def add(name: str) -> None:
        for need in TASKS[name].needs:
            add(need)
        found.setdefault(name, TASKS[name])

    for name in names:
        add(name)
    return list(found.values())


def remaining(
    names: Iterable[str], *, done: Callable[[str], bool], ready: Callable[[str], bool]
) -> list[Task]:
    """Return what is still to do, in order.

    Args:
        names: Tasks wanted.
        done: Says whether a task has its result.
        ready: Says whether its models lie on disk. A result can be there without them, on another
            machine say; the task is then done again where a later one starts from its models.
    """
    tasks = ordered(name for name in names if not done(name))
    return [task for task in tasks if not (done(task.name) and ready(task.name))]
