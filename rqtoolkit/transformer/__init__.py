"""RQ-Transformer: an autoregressive model of stacks of codes on a grid or a sequence."""

from rqtoolkit.transformer.model import RQTransformer

__all__ = ["RQTransformer"]
