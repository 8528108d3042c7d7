"""Stage 2 of the authors, config.yaml and tensors, as our RQTransformer, and back.

Names differ, and two layouts: query, key and value are one matrix here, and learned embeddings
have an axis for the level. The codewords of stage 1 are no part of the authors' file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from imagegen.checkpoints.official_config import MOST_LAYERS, OfficialConfig
from rqtoolkit.errors import ArtifactError, ConfigError

__all__ = [
    "TransformerArguments",
    "transformer_arch",
    "transformer_arguments",
    "transformer_from_official",
    "transformer_to_official",
]

_POSITIONS = {  # theirs have a first axis of one
    "condition_positions": "pos_emb_cond",
    "embedding.positions": "pos_emb_hw",
    "embedding.levels": "pos_emb_d",
}
_MODULES = {
    "condition": "cond_emb",
    "embedding.body_projection": "input_mlp",
    "embedding.depth_projection": "head_mlp",
    "classifier_norm": "classifier.layer_norm",
    "classifier": "classifier.linear",
    "text_classifier_norm": "cond_classifier.layer_norm",
    "text_classifier": "cond_classifier.linear",
}
_STACKS = {"body": "body_transformer", "depth_transformer": "head_transformer"}
_BLOCK = {
    "attention_norm": ("ln1",),
    "mlp_norm": ("ln2",),
    "attention.query_key_value": ("attn.query", "attn.key", "attn.value"),
    "attention.output": ("attn.proj",),
    "mlp.0": ("mlp.0",),
    "mlp.2": ("mlp.2",),
}


@dataclass(frozen=True)
class TransformerArguments:
    """What a stage-2 config.yaml says.

    Attributes:
        transformer: Keyword arguments of `rqtoolkit.RQTransformer`, codebooks left out.
        code_dim: Width of the codewords of stage 1 that it reads; None learns embeddings instead.
        tau: Temperature of the soft targets in training.
        sampling: Temperature, top_k and top_p of the release, as `imagegen.settings` has them.
        notes: What only training would notice and ours lacks, and what was read as another value, a
            sentence each.
    """

    transformer: dict[str, Any]
    code_dim: int | None
    tau: float
    sampling: dict[str, Any]
    notes: tuple[str, ...]


def transformer_arguments(config: OfficialConfig) -> TransformerArguments:
    """Read a stage-2 configuration.

    Raises:
        ArtifactError: If a key is missing, of a wrong type, or sizes contradict each other.
        ConfigError: If the file asks for an architecture that has no counterpart here.
    """
    config.only("arch.type", "rq-transformer")
    height, width, depth = config.counts("arch.block_size", length=3)
    dim = config.count("arch.embed_dim")
    vocab = "arch.vocab_size"
    if config.find(vocab, None) is None:  # experiment files have it with the data
        vocab = "dataset.vocab_size"
    sizes = config.sizes(vocab, depth)
    codewords = config.flag("arch.input_emb_vqvae", False)
    config.only("arch.head_emb_vqvae", codewords, default=False)
    classes = max(1, config.count("arch.vocab_size_cond", 0, low=0))
    length = max(1, config.count("arch.block_size_cond", 0, low=0))
    transformer: dict[str, Any] = {
        "positions": [height, width],
        "depth": depth,
        "codebook_size": sizes,
        "dim": dim,
        "body_layers": config.count("arch.body.n_layer", most=MOST_LAYERS),
        "depth_layers": config.count("arch.head.n_layer", most=MOST_LAYERS),
        "num_heads": config.count("arch.body.block.n_head"),
        "dropout": config.number("arch.body.block.resid_pdrop", 0.1, most=0.9),
        "classifier_per_level": not config.flag("arch.shared_cls_emb", False),
        "partial_sums": codewords and config.flag("arch.cumsum_depth_ctx", False),
    }
    config.only("arch.head.block.n_head", transformer["num_heads"])
    if length > 1:
        transformer |= {"text_length": length, "text_vocab": classes}
        transformer["text_weight"] = config.number("loss.txt_weight", 0.1, most=1.0)
    elif classes > 1:
        transformer["num_classes"] = classes
    if not codewords:
        transformer["shared_embeddings"] = config.flag("arch.shared_tok_emb", False)
    shared = transformer.get("shared_embeddings") or not transformer["classifier_per_level"]
    if shared and isinstance(sizes, list):
        raise config.wrong(vocab, sizes, "must be one integer where embeddings or classifier are")
    for stack in ("body", "head"):
        config.only(f"arch.{stack}.block.embed_dim", dim)
        config.only(f"arch.{stack}.block.mlp_bias", True)
        config.only(f"arch.{stack}.block.attn_bias", True)
        config.only(f"arch.{stack}.block.gelu", "v1")
    sampling, changed = _sampling(config, depth)
    return TransformerArguments(
        transformer=transformer,
        code_dim=config.count("arch.input_embed_dim") if codewords else None,
        tau=config.number("loss.temp", 0.5, low=1e-9),
        sampling=sampling,
        notes=(*_training_notes(config, transformer["dropout"]), *changed),
    )


def _training_notes(config: OfficialConfig, dropout: float) -> tuple[str, ...]:
    rates = [("arch.embd_pdrop", 0.0, 0.0), ("arch.head.block.resid_pdrop", 0.1, dropout)]
    rates += [(f"arch.{stack}.block.attn_pdrop", 0.0, 0.0) for stack in ("body", "head")]
    theirs = [(key, config.number(key, default, most=1.0), ours) for key, default, ours in rates]
    return tuple(
        f"trained with {key} {rate:g}; ours is {ours:g}"
        for key, rate, ours in theirs
        if rate != ours
    )


def _sampling(config: OfficialConfig, depth: int) -> tuple[dict[str, Any], list[str]]:
    """Return temperature and filters, of a release, else of an experiment, else none; and notes."""
    section = "sampling" if config.find("sampling", None) is not None else "experiment.sample"
    settings: dict[str, Any] = {"temperature": config.number(f"{section}.temp", 1.0, low=1e-3)}
    notes = []
    for name, default in (("top_k", 0), ("top_p", 1.0)):
        key = f"{section}.{name}"
        value = config.find(key, default)
        values = value if isinstance(value, list) else [value]
        if len(values) not in (1, depth) or any(type(v) not in (int, float) for v in values):
            raise config.wrong(key, value, f"must be a number, or {depth} of them")
        if name == "top_p":
            shares = [min(1.0, float(v)) for v in values]
            if shares != values:  # from 1 on both codes keep everything
                used = shares if isinstance(value, list) else shares[0]
                notes.append(f"{key} {value} goes beyond 1, where everything is kept: used {used}")
            values = shares
        settings[name] = tuple(values) if len(values) > 1 else values[0]
    return settings, notes


def transformer_arch(
    transformer: Mapping[str, Any], *, code_dim: int | None, conditions_per_class: int = 1
) -> dict[str, Any]:
    """Return the section `arch` of a stage-2 configuration.

    Args:
        transformer: Arguments of an RQTransformer.
        code_dim: Width of the codewords it reads; None where it learns embeddings.
        conditions_per_class: Of so many conditions the first is exported.

    Raises:
        ConfigError: If the authors' code cannot build such a model.
    """
    codewords, sizes = code_dim is not None, transformer["codebook_size"]
    unknown = {"rotary": False, "qk_norm": False, "adaln": False, "swiglu": False}
    if not codewords:
        unknown["partial_sums"] = False
    for name, value in unknown.items():
        if transformer[name] != value:
            raise ConfigError(
                f"export: {name}={transformer[name]!r} is unknown to the authors' code; got an "
                f"RQTransformer that has it. Only {name}={value!r} can be exported."
            )
    if len(transformer["positions"]) != 2:
        raise ConfigError(
            f"export: positions={list(transformer['positions'])} must be a grid (H, W); got "
            f"{len(transformer['positions'])} axes. The authors' code knows images alone."
        )
    per_level, varied = transformer["classifier_per_level"], len(set(sizes)) > 1
    shared_embeddings = transformer["shared_embeddings"] or (codewords and not varied)
    if varied and not per_level:
        raise ConfigError(
            f"export: codebook_size={list(sizes)} needs a classifier for each level; got "
            f"classifier_per_level=False. The authors' code cannot cut a shared one."
        )
    block = {
        "embed_dim": transformer["dim"],
        "n_head": transformer["num_heads"],
        "resid_pdrop": transformer["dropout"],
    }
    return {
        "type": "rq-transformer",
        "block_size": [*transformer["positions"], transformer["depth"]],
        "vocab_size": list(sizes) if varied else sizes[0],
        "vocab_size_cond": _conditions(transformer) // conditions_per_class,
        "block_size_cond": transformer["text_length"] or 1,
        "embed_dim": transformer["dim"],
        "input_embed_dim": code_dim,
        "shared_tok_emb": bool(shared_embeddings),
        "shared_cls_emb": not per_level,
        "input_emb_vqvae": codewords,
        "head_emb_vqvae": codewords,
        "cumsum_depth_ctx": codewords and transformer["partial_sums"],
        "body": {"n_layer": transformer["body_layers"], "block": dict(block)},
        "head": {"n_layer": transformer["depth_layers"], "block": dict(block)},
    }


def transformer_to_official(
    state: Mapping[str, Tensor], transformer: Mapping[str, Any], *, conditions_per_class: int = 1
) -> dict[str, Tensor]:
    """Rename and lay out the state of an RQTransformer as the authors do.

    Args:
        state: `RQTransformer.state_dict()`; tensors without data (device meta) give names and
            shapes.
        transformer: Arguments of that model.
        conditions_per_class: Of so many rows of the condition table the first is kept. The null
            row never is.

    Returns:
        Tensors by the authors' names.
    """
    official: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "embedding.codebooks":  # they lie in the file of stage 1
            continue
        if name == "embedding.embeddings":
            official["tok_emb.weight"] = _rows(tensor, transformer["codebook_size"])
            continue
        if name == "condition.weight":
            tensor = tensor[: _conditions(transformer) : conditions_per_class]
        if name in _POSITIONS:
            tensor = tensor.unsqueeze(0)
        names = _official_names(name)
        official |= zip(names, tensor.chunk(len(names)), strict=True)
    if "tok_emb.weight" in official and not transformer["shared_embeddings"]:
        device = official["tok_emb.weight"].device
        official["tok_emb.offsets"] = _offsets(transformer["codebook_size"]).to(device)
    return {name: tensor.contiguous() for name, tensor in official.items()}


def transformer_from_official(
    official: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    transformer: Mapping[str, Any],
    *,
    where: str,
) -> dict[str, Tensor]:
    """Rename and lay out the authors' tensors as the state of an RQTransformer.

    Args:
        official: Tensors with the names and shapes that `transformer_to_official` gives.
        state: `state_dict` of the model they are for: its names and shapes, and its codebooks.
        transformer: Arguments of that model.
        where: What to call the file in messages.

    Raises:
        ArtifactError: If the rows of learned embeddings are not where the sizes say.
    """
    sizes = transformer["codebook_size"]
    if not torch.equal(official.get("tok_emb.offsets", _offsets(sizes)), _offsets(sizes)):
        raise ArtifactError(
            f"{where}: tok_emb.offsets={official['tok_emb.offsets'].tolist()} must be the first "
            f"rows of the levels, {_offsets(sizes).tolist()}; got a file that contradicts its "
            f"config.yaml."
        )
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "embedding.codebooks":
            ours[name] = tensor
        elif name == "embedding.embeddings":
            ours[name] = _tables(official["tok_emb.weight"], tensor.shape, sizes)
        else:
            pieces = [official[piece] for piece in _official_names(name)]
            # A single piece is not copied: the largest models fill the memory twice otherwise.
            whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            ours[name] = whole.view(tensor.shape)
    return ours


def _official_names(name: str) -> list[str]:
    """Return the authors' names for what is one tensor here."""
    if name in _POSITIONS:
        return [_POSITIONS[name]]
    module, _, kind = name.rpartition(".")
    if module in _MODULES:
        return [f"{_MODULES[module]}.{kind}"]
    stack, _, number, part = module.split(".", 3)
    block = f"{_STACKS[stack]}.blocks.{number}"
    return [f"{block}.{piece}.{kind}" for piece in _BLOCK[part]]


def _conditions(transformer: Mapping[str, Any]) -> int:
    """Count the rows of the condition table but the null row."""
    return transformer["num_classes"] or transformer["text_vocab"] or 1


def _offsets(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(sizes)][:-1])


def _rows(tables: Tensor, sizes: Sequence[int]) -> Tensor:
    """Lay tables (1 or depth, K, dim) out as the rows of one, their padding left out."""
    return torch.cat([table[:size] for table, size in zip(tables, sizes, strict=False)])


def _tables(rows: Tensor, shape: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Undo `_rows`, with zeros as padding."""
    tables = rows.new_zeros(shape)
    start = 0
    for table, size in zip(tables, sizes, strict=False):
        table[:size] = rows[start : start + size]
        start += size
    return tables
