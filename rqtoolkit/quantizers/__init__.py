"""Quantizers as torch modules."""

from rqtoolkit.quantizers.autoencoder import ResidualAutoencoder
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.binary import ResidualBinaryQuantizer
from rqtoolkit.quantizers.grouped import GroupedResidualQuantizer
from rqtoolkit.quantizers.importers import (
    from_dac,
    from_encodec,
    from_vector_quantize_pytorch,
    split_projections,
)
from rqtoolkit.quantizers.loading import load_quantizer
from rqtoolkit.quantizers.neural import NeuralResidualQuantizer
from rqtoolkit.quantizers.output import CodeStats, QuantizerOutput, SoftCodes
from rqtoolkit.quantizers.residual import ResidualQuantizer
from rqtoolkit.quantizers.scalar import ResidualScalarQuantizer

__all__ = [
    "CodeStats",
    "GroupedResidualQuantizer",
    "NeuralResidualQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "ResidualAutoencoder",
    "ResidualBinaryQuantizer",
    "ResidualQuantizer",
    "ResidualScalarQuantizer",
    "SoftCodes",
    "from_dac",
    "from_encodec",
    "from_vector_quantize_pytorch",
    "load_quantizer",
    "split_projections",
]
