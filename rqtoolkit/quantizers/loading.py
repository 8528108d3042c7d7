"""Read a quantizer of whatever kind from its file."""

from pathlib import Path

import torch

from rqtoolkit.errors import ArtifactError
from rqtoolkit.io.artifact import artifact_class
from rqtoolkit.quantizers.autoencoder import ResidualAutoencoder
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.binary import ResidualBinaryQuantizer
from rqtoolkit.quantizers.grouped import GroupedResidualQuantizer
from rqtoolkit.quantizers.neural import NeuralResidualQuantizer
from rqtoolkit.quantizers.residual import ResidualQuantizer
from rqtoolkit.quantizers.scalar import ResidualScalarQuantizer

__all__ = ["load_quantizer", "quantizer_kind"]

_KINDS: dict[str, type[Quantizer]] = {
    kind.__name__: kind
    for kind in (
        ResidualQuantizer,
        GroupedResidualQuantizer,
        NeuralResidualQuantizer,
        ResidualAutoencoder,
        ResidualScalarQuantizer,
        ResidualBinaryQuantizer,
    )
}


def load_quantizer(path: str | Path, device: str | torch.device = "cpu") -> Quantizer:
    """Read a quantizer that `save` wrote, of the kind its header names, in eval mode.

    Args:
        path: File to read.
        device: Where the tensors go.

    Raises:
        ArtifactError: If the file is missing, damaged, foreign, of an unknown version, or holds
            no quantizer.
    """
    return quantizer_kind(path, artifact_class(path)).load(path, device=device)


def quantizer_kind(path: str | Path, name: str) -> type[Quantizer]:
    """Return the kind of quantizer that a file names.

    Args:
        path: File, for the message.
        name: Its class.

    Raises:
        ArtifactError: If that is none.
    """
    if name not in _KINDS:
        raise ArtifactError(
            f"load_quantizer: {path} holds no quantizer; got class={name!r}, known are "
            f"{', '.join(_KINDS)}. Name a file written by `rqtool quantize fit`."
        )
    return _KINDS[name]
