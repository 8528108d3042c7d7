"""Stage 1 of the authors, config.yaml and tensors, as our RQVAE, and back.

Encoder and decoder carry the authors' names already. The bottleneck does not: a level is stored
there as `weight` (K+1, dim), whose last row is an unused zero pad, with `cluster_size_ema` (K,) and
`embed_ema` (K, dim), the moving sums that ours has no need to keep. A shared codebook is stored
once a level.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imagegen.checkpoints.official_config import MOST_LAYERS, OfficialConfig
from rqtoolkit.errors import ArtifactError, ConfigError

__all__ = [
    "AutoencoderArguments",
    "autoencoder_arch",
    "autoencoder_arguments",
    "autoencoder_from_official",
    "autoencoder_to_official",
]

_GROUPS = 32  # of every GroupNorm in the authors' code
_SMOOTHING = 1e-5  # added to a count before a moving sum is divided by it
_OWN_NAMES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


@dataclass(frozen=True)
class AutoencoderArguments:
    """What a stage-1 config.yaml says.

    Attributes:
        autoencoder: Keyword arguments of `imagegen.autoencoder.RQVAE`.
        quantizer: Arguments of `rqtoolkit.ResidualQuantizer`.
        commitment_weight: Weight of the commitment loss in training.
        notes: What only training would notice and ours lacks, a sentence each.
    """

    autoencoder: dict[str, Any]
    quantizer: dict[str, Any]
    commitment_weight: float
    notes: tuple[str, ...]


def autoencoder_arguments(config: OfficialConfig) -> AutoencoderArguments:
    """Read a stage-1 configuration.

    Raises:
        ArtifactError: If a key is missing, of a wrong type, or sizes contradict each other.
        ConfigError: If the file asks for an architecture that has no counterpart here.
    """
    config.only("arch.type", "rq-vae")
    config.only("arch.code_hier", 1)
    config.only("arch.hparams.bottleneck_type", "rq")
    config.only("arch.ddconfig.double_z", False, default=True)
    config.only("arch.ddconfig.resamp_with_conv", True)
    config.only("arch.ddconfig.give_pre_end", False)
    channels = config.count("arch.ddconfig.ch")
    multipliers = config.counts("arch.ddconfig.ch_mult", [1, 2, 4, 8])
    resolution = config.count("arch.ddconfig.resolution")
    image_channels = config.count("arch.ddconfig.in_channels")
    config.only("arch.ddconfig.out_ch", image_channels)
    if not multipliers or channels % _GROUPS:
        raise ArtifactError(
            f"{config.where}: arch.ddconfig.ch={channels} must divide by {_GROUPS}, the groups of "
            f"every normalisation, and ch_mult name a level; got ch_mult={multipliers}."
        )
    latent = config.counts("arch.hparams.latent_shape", length=3)
    code = config.counts("arch.hparams.code_shape", length=3)
    code_dim, side, depth = config.count("arch.hparams.embed_dim"), latent[0], code[2]
    reduced = resolution / 2 ** (len(multipliers) - 1)
    if latent[2] != code_dim:
        raise ArtifactError(
            f"{config.where}: arch.hparams.embed_dim={code_dim} must be the last of latent_shape; "
            f"got latent_shape={latent}. Take the file that was released with the checkpoint."
        )
    if latent != [side, side, code_dim] or side != reduced:
        raise ArtifactError(
            f"{config.where}: arch.hparams.latent_shape={latent} must be [{reduced:g}, "
            f"{reduced:g}, {code_dim}], what the encoder gives; got another shape."
        )
    fold = side // code[0]
    if code[:2] != [code[0]] * 2 or fold * code[0] != side:
        raise ArtifactError(
            f"{config.where}: arch.hparams.code_shape={code} must be square and divide "
            f"latent_shape; got latent_shape={latent}."
        )
    sizes = config.sizes("arch.hparams.n_embed", depth)
    shared = config.flag("arch.hparams.shared_codebook")
    if shared and isinstance(sizes, list):
        raise config.wrong("arch.hparams.n_embed", sizes, "must be one integer where shared")
    restarts = config.flag("arch.hparams.restart_unused_codes", False)
    loss = config.find("arch.hparams.loss_type", "l1")
    return AutoencoderArguments(
        autoencoder={
            "resolution": resolution,
            "image_channels": image_channels,
            "channels": channels,
            "multipliers": multipliers,
            "blocks": config.count("arch.ddconfig.num_res_blocks", most=MOST_LAYERS),
            "attention": config.counts("arch.ddconfig.attn_resolutions"),
            "middle": True,
            "latent_channels": config.count("arch.ddconfig.z_channels"),
            "code_dim": code_dim,
            "fold": fold,
            "norm_groups": _GROUPS,
            "dropout": config.number("arch.ddconfig.dropout", 0.0, most=0.9),
        },
        quantizer={
            "dim": code_dim * fold**2,
            "depth": depth,
            "codebook_size": sizes,
            "shared_codebook": shared,
            "decay": _decay(config),
            "restart_threshold": 0.25 if restarts else 0.0,
            "kmeans_init": False,
        },
        commitment_weight=config.number("arch.hparams.latent_loss_weight", 0.25),
        notes=() if loss == "mse" else (f"trained with loss_type {loss!r:.20}; ours is mse",),
    )


def _decay(config: OfficialConfig) -> float:
    key = "arch.hparams.decay"
    value = config.find(key, 0.99)
    levels = value if isinstance(value, list) else [value]
    if any(level != levels[0] for level in levels):
        raise ConfigError(
            f"{config.where}: {key}={value!r:.60} must be the same at all levels; got several. "
            f"Write one number: it matters in training alone."
        )
    if not levels or type(levels[0]) not in (int, float) or not 0 <= levels[0] < 1:
        raise config.wrong(key, value, "must be a number from 0 to 1, 1 excluded")
    return float(levels[0])


def autoencoder_arch(
    autoencoder: Mapping[str, Any], quantizer: Mapping[str, Any], *, commitment_weight: float
) -> dict[str, Any]:
    """Return the section `arch` of a stage-1 configuration.

    Args:
        autoencoder: Keyword arguments of an RQVAE.
        quantizer: Arguments of its ResidualQuantizer.
        commitment_weight: Weight of the commitment loss in training.

    Raises:
        ConfigError: If the authors' code cannot build such a model.
    """
    required = {"middle": True, "norm_groups": _GROUPS, "channels_first": False, "beam": 1}
    have = {**autoencoder, **quantizer}
    for name, value in required.items():
        if have[name] != value:
            raise ConfigError(
                f"export: {name}={have[name]!r} is unknown to the authors' code; got an RQVAE that "
                f"has it. Only {name}={value!r} can be exported."
            )
    if autoencoder["channels"] % _GROUPS:
        raise ConfigError(
            f"export: channels={autoencoder['channels']} must divide by {_GROUPS}; got an RQVAE "
            f"narrower than the authors' normalisation, which has {_GROUPS} groups everywhere."
        )
    code_dim, fold = autoencoder["code_dim"], autoencoder["fold"]
    side = autoencoder["resolution"] // 2 ** (len(autoencoder["multipliers"]) - 1)
    return {
        "type": "rq-vae",
        "code_hier": 1,
        "checkpointing": False,
        "hparams": {
            "bottleneck_type": "rq",
            "embed_dim": code_dim,
            "n_embed": quantizer["codebook_size"],
            "latent_shape": [side, side, code_dim],
            "code_shape": [side // fold, side // fold, quantizer["depth"]],
            "shared_codebook": quantizer["shared_codebook"],
            "decay": quantizer["decay"],
            "restart_unused_codes": quantizer["restart_threshold"] > 0,
            "loss_type": "mse",
            "latent_loss_weight": commitment_weight,
        },
        "ddconfig": {
            "double_z": False,
            "z_channels": autoencoder["latent_channels"],
            "resolution": autoencoder["resolution"],
            "in_channels": autoencoder["image_channels"],
            "out_ch": autoencoder["image_channels"],
            "ch": autoencoder["channels"],
            "ch_mult": list(autoencoder["multipliers"]),
            "num_res_blocks": autoencoder["blocks"],
            "attn_resolutions": list(autoencoder["attention"]),
            "dropout": autoencoder["dropout"],
        },
    }


def autoencoder_to_official(
    state: Mapping[str, Tensor], *, codebook_sizes: tuple[int, ...]
) -> dict[str, Tensor]:
    """Rename and lay out the state of an RQVAE as the authors do.

    Args:
        state: `RQVAE.state_dict()`; tensors without data (device meta) give names and shapes.
        codebook_sizes: Entries of each level.

    Returns:
        Tensors by the authors' names. Levels that share a codebook share the tensors.
    """
    official = {name: x for name, x in state.items() if name.startswith(_OWN_NAMES)}
    tables, counts = state["quantizer.state.tables"], state["quantizer.state.counts"]
    levels = []
    for table, count, size in zip(tables, counts, codebook_sizes, strict=False):
        codewords, used = table[:size], count[:size]
        levels.append(
            {
                "weight": torch.cat([codewords, codewords.new_zeros(1, codewords.shape[1])]),
                "cluster_size_ema": used.clone(),
                "embed_ema": _moving_sums(codewords, used),
            }
        )
    for level in range(len(codebook_sizes)):
        for name, tensor in levels[min(level, len(levels) - 1)].items():
            official[f"quantizer.codebooks.{level}.{name}"] = tensor
    return official


def _moving_sums(codewords: Tensor, counts: Tensor) -> Tensor:
    """Return the sums that divided by the smoothed counts are the codewords.

    Before the first update the authors' sums are the codewords themselves.
    """
    total = counts.sum()
    smoothed = total * (counts + _SMOOTHING) / (total + len(counts) * _SMOOTHING)
    return codewords * torch.where(total > 0, smoothed, 1.0)[:, None]


def autoencoder_from_official(
    official: Mapping[str, Tensor],
    *,
    codebook_sizes: tuple[int, ...],
    shared_codebook: bool,
    where: str,
) -> dict[str, Tensor]:
    """Rename and lay out the authors' tensors as the state of an RQVAE.

    Args:
        official: Tensors with the names and shapes that `autoencoder_to_official` gives.
        codebook_sizes: Entries of each level.
        shared_codebook: Whether all levels have one table, which is then stored once.
        where: What to call the file in messages.

    Raises:
        ArtifactError: If the levels of a shared codebook differ.
    """
    state = {name: x for name, x in official.items() if name.startswith(_OWN_NAMES)}
    first, depth = "quantizer.codebooks.0", len(codebook_sizes)
    if shared_codebook:
        for level in range(1, depth):
            for name in ("weight", "cluster_size_ema"):
                other = f"quantizer.codebooks.{level}.{name}"
                if not torch.equal(official[other], official[f"{first}.{name}"]):
                    raise ArtifactError(
                        f"{where}: {other} differs from {first}.{name} where config.yaml has "
                        f"shared_codebook: true; got two tables. Take the config.yaml that was "
                        f"released with the checkpoint."
                    )
    sizes = codebook_sizes[:1] if shared_codebook else codebook_sizes
    dim = official[f"{first}.weight"].shape[1]
    tables = torch.zeros(len(sizes), max(sizes), dim)
    counts = torch.zeros(len(sizes), max(sizes))
    for level, size in enumerate(sizes):
        tables[level, :size] = official[f"quantizer.codebooks.{level}.weight"][:size]
        counts[level, :size] = official[f"quantizer.codebooks.{level}.cluster_size_ema"]
    return {
        **state,
        "quantizer.state.tables": tables,
        "quantizer.state.counts": counts,
        "quantizer.state.gathered": torch.empty(0, dim),
        "quantizer.state.initialized": torch.tensor(1.0),
    }
