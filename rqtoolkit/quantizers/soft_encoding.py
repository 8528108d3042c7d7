"""Codes with how near the other codewords were: methods of `ResidualQuantizer`."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rqtoolkit.functional.assign import DEFAULT_MAX_BYTES
from rqtoolkit.functional.soft_targets import SoftTargets
from rqtoolkit.functional.soft_targets import soft_targets as level_soft_targets
from rqtoolkit.quantizers import checks
from rqtoolkit.quantizers.output import SoftCodes

if TYPE_CHECKING:
    from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["soft_codes", "soft_targets"]


@torch.no_grad()
def soft_codes(
    quantizer: "ResidualQuantizer",
    x: Tensor,
    tau: float,
    *,
    relative: bool = False,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
) -> SoftCodes:
    """Codes with the distribution Q(k | r) = softmax(−‖r − e_k‖² / tau) of each level.

    The distributions take N · depth · codebook_size numbers; `soft_targets` keeps what they
    follow from.

    Args:
        x: Vectors, shape (..., dim), or (B, dim, ...) with channels_first.
        tau: Temperature, above 0, in the units of a squared distance.
        relative: Take tau in units of the mean squared codeword norm of all tables: the
            paper's 0.5 suits its 256-dimensional latents and makes small ones uniform.
        stochastic: Draw each code from its distribution, and go on with the residual of the
            drawn one, in place of taking the nearest.
        generator: Source of the draws, on the device of x.

    Returns:
        Codes (..., depth) and probabilities (..., depth, K).

    Raises:
        ShapeError: If x does not have dim channels.
        ConfigError: If tau is not above 0, or the quantizer does not choose the nearest codeword
            (similarity="cosine", codebook_dim).

    References:
        Lee et al., CVPR 2022, section 3.2.3 (soft labels and stochastic sampling).
    """
    settings: dict[str, Any] = {"relative": relative, "stochastic": stochastic}
    settings |= {"generator": generator, "max_bytes": sys.maxsize}
    codes, soft = quantizer.soft_targets(x, tau, **settings)
    return SoftCodes(codes, soft.probabilities())


@torch.no_grad()
def soft_targets(
    quantizer: "ResidualQuantizer",
    x: Tensor,
    tau: float,
    *,
    relative: bool = False,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> tuple[Tensor, SoftTargets]:
    """Do what `soft_codes` does in bounded memory, for the loss of `RQTransformer`.

    While the distributions of one level fit into max_bytes, a generator draws the codes that
    it draws there; beyond that, vectors are drawn chunk by chunk.

    Args:
        x: As for `soft_codes`, and so is what is not described here, with its errors.
        max_bytes: Bound on the distributions held at once.

    Returns:
        Codes (..., depth), and the soft targets with residuals (..., depth, dim).
    """
    checks.check_plain(
        quantizer._name("soft_targets"), quantizer.similarity, quantizer.codebook_dim
    )
    flat, shape = quantizer._flatten(x, "soft_targets")
    tables = quantizer._levels(quantizer.depth)
    tau = checks.temperature(quantizer._name("soft_targets"), tau, tables, relative=relative)
    codes, soft = level_soft_targets(
        flat, tables, tau, stochastic=stochastic, generator=generator, max_bytes=max_bytes
    )
    residuals = soft.residuals.reshape(*shape, quantizer.depth, quantizer.dim)
    return codes.reshape(*shape, quantizer.depth), replace(soft, residuals=residuals)
