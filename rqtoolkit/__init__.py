"""Residual quantization for vectors of any modality, and transformers over the codes.

The public names are imported on first use, so that `rqtool --help` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rqtoolkit.estimators import ResidualKMeans
    from rqtoolkit.quantizers import (
        GroupedResidualQuantizer,
        NeuralResidualQuantizer,
        ResidualAutoencoder,
        ResidualBinaryQuantizer,
        ResidualQuantizer,
        ResidualScalarQuantizer,
        load_quantizer,
    )
    from rqtoolkit.semantic_ids import SemanticIDs
    from rqtoolkit.transformer import RQTransformer

__all__ = [
    "GroupedResidualQuantizer",
    "NeuralResidualQuantizer",
    "RQTransformer",
    "ResidualAutoencoder",
    "ResidualBinaryQuantizer",
    "ResidualKMeans",
    "ResidualQuantizer",
    "ResidualScalarQuantizer",
    "SemanticIDs",
    "__version__",
    "load_quantizer",
]
__version__ = "0.1.0"

_HOMES = {
    "GroupedResidualQuantizer": "rqtoolkit.quantizers",
    "NeuralResidualQuantizer": "rqtoolkit.quantizers",
    "RQTransformer": "rqtoolkit.transformer",
    "ResidualAutoencoder": "rqtoolkit.quantizers",
    "ResidualBinaryQuantizer": "rqtoolkit.quantizers",
    "ResidualKMeans": "rqtoolkit.estimators",
    "ResidualQuantizer": "rqtoolkit.quantizers",
    "ResidualScalarQuantizer": "rqtoolkit.quantizers",
    "SemanticIDs": "rqtoolkit.semantic_ids",
    "load_quantizer": "rqtoolkit.quantizers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rqtoolkit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
