"""Quantizers as torch modules."""

from rqtoolkit.quantizers.output import CodeStats, QuantizerOutput, SoftCodes
from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["CodeStats", "QuantizerOutput", "ResidualQuantizer", "SoftCodes"]
