"""Image generation with residual quantization: the system of Lee et al., CVPR 2022.

The public names are imported on first use, so that `rqtool --help` loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagegen.checkpoints import export_release, import_release

__all__ = ["export_release", "import_release"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'imagegen' has no attribute {name!r}")
    from imagegen import checkpoints

    value = getattr(checkpoints, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
