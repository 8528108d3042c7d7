"""What happens in `ResidualQuantizer.forward`: the pass through the levels, and what they learn."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rqtoolkit.functional.assign import chunk_slices
from rqtoolkit.functional.encoding import encode_vectors
from rqtoolkit.functional.gradient import rotation_trick, straight_through
from rqtoolkit.quantizers.depth_dropout import levels_in_use
from rqtoolkit.quantizers.levels import (
    Choose,
    LevelPass,
    Observe,
    choose_codes,
    given_codes,
    quantize_levels,
)
from rqtoolkit.quantizers.paper_update import quantize_and_update
from rqtoolkit.quantizers.projections import quantize_projected_levels
from rqtoolkit.quantizers.updates import usable_rows

if TYPE_CHECKING:
    from rqtoolkit.quantizers.residual import ResidualQuantizer

__all__ = ["greedy_codes", "is_plain", "quantize"]

_ESTIMATORS = {"straight_through": straight_through, "rotation": rotation_trick}


def is_plain(quantizer: "ResidualQuantizer") -> bool:
    """Whether a level takes the codeword nearest to the vector itself."""
    return quantizer.projections is None and quantizer.similarity == "euclidean"


def quantize(
    quantizer: "ResidualQuantizer",
    x: Tensor,
    real: Tensor | None,
    depths: Tensor | None,
    levels: int,
    *,
    learning: bool,
    generator: torch.Generator | None,
) -> LevelPass:
    """Run the levels over vectors, and let the codebooks learn from them.

    Args:
        quantizer: Whose codebooks they are.
        x: Vectors, shape (N, dim), float32, 0 in padding.
        real: False for padding, shape (N,); None without any.
        depths: Levels that each vector uses, shape (N,); None for all.
        levels: Levels to compute; all where the codebooks learn.
        learning: Whether the codebooks learn.
        generator: Source of chance.

    Returns:
        What the levels gave, `quantized` with the estimator's gradient.
    """
    in_use = levels_in_use(real, depths, levels)
    learns = learning and (not quantizer.kmeans_init or quantizer.state.is_initialized)
    weights = x.new_ones(x.shape[0]) if real is None else real.float()
    if learns:
        weights = weights * usable_rows(x.detach())
    if learns and quantizer.update == "paper":
        done = quantize_and_update(quantizer.state, x, levels, weights, generator, in_use=in_use)
    else:
        choose = _choose(quantizer, x, levels, generator)
        record = quantizer.state.new_record(levels, weights, generator) if learns else None
        observe = None if record is None else record.add
        done = _run_levels(quantizer, x, choose, levels, in_use, observe)
        if record is not None:
            done.dead = quantizer.state.update(record)
    if quantizer.projections is None and x.requires_grad:
        done.quantized = _ESTIMATORS[quantizer.estimator](x, done.quantized)
    return done


def greedy_codes(quantizer: "ResidualQuantizer", x: Tensor, depth: int, max_bytes: int) -> Tensor:
    """Encode vectors (N, dim) by the rule of `forward`, (N, depth), a chunk at a time."""
    codes = torch.empty(x.shape[0], depth, dtype=torch.int64, device=x.device)
    choose = choose_codes(similarity=quantizer.similarity)
    for rows in chunk_slices(x.shape[0], 16 * x.shape[1] * x.element_size(), max_bytes):
        codes[rows] = _run_levels(quantizer, x[rows], choose, depth).codes
    return codes


def _choose(
    quantizer: "ResidualQuantizer", x: Tensor, depth: int, generator: torch.Generator | None
) -> Choose:
    """Return the rule by which codes of x are chosen."""
    if quantizer.forward_beam > 1:
        levels = quantizer._levels(depth)
        return given_codes(encode_vectors(x.detach(), levels, beam=quantizer.forward_beam))
    tau = quantizer.tau if quantizer.training else 0.0
    return choose_codes(similarity=quantizer.similarity, tau=tau, generator=generator)


def _run_levels(
    quantizer: "ResidualQuantizer",
    x: Tensor,
    choose: Choose,
    depth: int,
    in_use: Tensor | None = None,
    observe: Observe | None = None,
) -> LevelPass:
    tables = quantizer.state.levels(depth)
    options: dict[str, Any] = {
        "in_use": in_use,
        "codebook_loss": quantizer.update == "gradient",
        "observe": observe,
    }
    if quantizer.projections is None:
        return quantize_levels(x, tables, choose, **options)
    estimator = _ESTIMATORS[quantizer.estimator]
    return quantize_projected_levels(x, tables, quantizer.projections, choose, estimator, **options)
