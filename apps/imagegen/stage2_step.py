"""One step of stage 2: codes and targets from latents, the loss on them, and what decays."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from imagegen.encoding import EncodedBatch
from rqtoolkit.quantizers import ResidualQuantizer
from rqtoolkit.transformer.classifier import LevelClassifiers

__all__ = ["parameter_groups", "transformer_loss"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide parameters into those that decay and those that do not, for AdamW.

    The matrices of linear maps decay; biases, norms, embeddings and positions do not. The paper
    gives the rate alone (1e-4), and its authors released no trainer of this stage. The rule is that
    of minGPT (`GPT.configure_optimizers`, https://github.com/karpathy/minGPT): decay keeps maps
    small, whereas an embedding that is seldom read would only be pulled to zero in between.

    Args:
        model: RQ-Transformer.
        weight_decay: Rate of the first group; that of the second is 0.
    """
    maps = (nn.Linear, LevelClassifiers)
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, maps)}
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]


def transformer_loss(
    loss_of: Callable[..., Tensor],
    quantizer: ResidualQuantizer,
    batch: EncodedBatch,
    *,
    tau: float,
    relative_tau: bool,
    soft_targets: bool,
    stochastic_codes: bool,
) -> Tensor:
    """Draw codes of a batch where it holds latents, and return the loss on them.

    Probabilities of all codes of a batch, (B, h, w, depth, K), never exist: they are computed from
    the residuals a chunk at a time, as the logits are.

    Args:
        loss_of: `RQTransformer.loss`, or what spreads it over processes.
        quantizer: Quantizer of the RQ-VAE.
        batch: Codes or latents, and what is told.
        tau: Temperature of targets and draws.
        relative_tau: Take it in units of the mean squared codeword norm.
        soft_targets: Whether the targets are distributions over codes.
        stochastic_codes: Whether codes are drawn, from torch's default generator.

    Returns:
        Mean cross-entropy in nats, a scalar.

    References:
        Lee et al., CVPR 2022, section 3.2.3.
    """
    device = quantizer.codebooks.device
    codes, targets = batch.values.to(device, non_blocking=True), None
    if codes.is_floating_point():
        codes, soft = quantizer.soft_targets(
            codes, tau, relative=relative_tau, stochastic=stochastic_codes
        )
        targets = soft if soft_targets else None
    cond = None if batch.cond is None else batch.cond.to(device, non_blocking=True)
    return loss_of(codes, cond=cond, targets=targets)
