"""Quantizers made of the state dicts of vector-quantize-pytorch, encodec, audiocraft and DAC.

They give the codes and reconstructions of the original, and go on training: moving counts come
along. Nothing here needs those packages. A state dict may be that of a whole network, given as
`module.state_dict()` or as a file (safetensors, or what `torch.save` wrote, of tensors alone).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rqtoolkit.errors import ArtifactError
from rqtoolkit.quantizers.base import Quantizer
from rqtoolkit.quantizers.binary import ResidualBinaryQuantizer
from rqtoolkit.quantizers.foreign_states import (
    State,
    named,
    refuse_rest,
    section_of,
    tensors_of,
    under,
)
from rqtoolkit.quantizers.grouped import GroupedResidualQuantizer
from rqtoolkit.quantizers.projections import LevelProjections
from rqtoolkit.quantizers.residual import ResidualQuantizer
from rqtoolkit.quantizers.scalar import ResidualScalarQuantizer

__all__ = ["from_dac", "from_encodec", "from_vector_quantize_pytorch", "split_projections"]

_PROJECTION = re.compile(r"(project_in|project_out)\.(weight|bias)")
_CODEBOOK = re.compile(r"layers\.(\d+)\._?codebook\.(embed|embed_avg|cluster_size|initt?ed)")


def from_vector_quantize_pytorch(state: State, *, prefix: str = "", **settings: Any) -> Quantizer:
    """Make a quantizer of a state dict of vector-quantize-pytorch.

    `ResidualVQ` and `VectorQuantize` become a `ResidualQuantizer`, `GroupedResidualVQ` a
    `GroupedResidualQuantizer` (whose codes are (..., depth · groups), level after level),
    `ResidualLFQ` a `ResidualBinaryQuantizer`, and `ResidualFSQ` a `ResidualScalarQuantizer`, for
    which `levels` and `depth` have to be given: they are not in the state. Before its version 1.26,
    `ResidualFSQ` had other grids, which cannot be imported. A spherical `ResidualLFQ` does not put
    vectors on the sphere before its first level, as ours does: codes agree for unit vectors.

    Args:
        state: State dict or file.
        prefix: What the quantizer's names begin with, where a network has several quantizers.
        settings: What the state does not say, as arguments of the quantizer made: for example
            `similarity="cosine"` for use_cosine_sim, `update="gradient"` for learnable_codebook,
            `decay`, `spherical`, `channels_first=True` for accept_image_fmap.

    Returns:
        The quantizer, in eval mode.

    Raises:
        ArtifactError: If the state has no such quantizer, several, or one that does what ours do
            not: projections around all levels (see `split_projections`), several heads, codebooks
            made by networks or affine maps; or if its k-means has not run.
        ConfigError: If a setting is out of its range.
    """
    where = "from_vector_quantize_pytorch"
    tensors = tensors_of(state, where)
    if "levels" in settings:
        return _scalar(under(tensors, prefix), settings, where)
    for mark, make in _KINDS:
        section = section_of(tensors, mark, prefix, where)
        if section is not None:
            return make(section, settings, where)
    raise ArtifactError(
        f"{where}: state has no ResidualVQ, GroupedResidualVQ, VectorQuantize or ResidualLFQ under "
        f"prefix={prefix!r}; got {named(tensors)}. Pass module.state_dict(), and for ResidualFSQ "
        "levels and depth."
    )


def from_encodec(state: State, *, prefix: str = "", **settings: Any) -> ResidualQuantizer:
    """Make a quantizer of a state dict of encodec, audiocraft, or EnCodec in transformers.

    Args:
        state: State dict or file.
        prefix: What the quantizer's names begin with, where a network has several quantizers.
        settings: Arguments of `ResidualQuantizer` to set; `channels_first=True` unless told
            otherwise, as vectors are (B, dim, T) there.

    Returns:
        The quantizer, in eval mode. Its codes are (B, T, depth), where those of encodec are
        (depth, B, T).

    Raises:
        ArtifactError: If the state has no such quantizer, or several, or its k-means has not run.
        ConfigError: If a setting is out of its range.
    """
    where = "from_encodec"
    tensors = tensors_of(state, where)
    section = section_of(tensors, r"layers\.0\._?codebook\.embed", prefix, where)
    if section is None:
        raise ArtifactError(
            f"{where}: state has no layers.0._codebook.embed under prefix={prefix!r}; got "
            f"{named(tensors)}. Pass the state dict of the model or of its quantizer."
        )
    settings = {"channels_first": True} | settings
    projected = re.compile(r"layers\.(\d+)\.(project_in|project_out)\.(weight|bias)")
    maps = {name: tensor for name, tensor in section.items() if projected.fullmatch(name)}
    rest = {name: tensor for name, tensor in section.items() if name not in maps}
    if not maps:
        return _residual(rest, settings, where)
    dim = maps["layers.0.project_in.weight"].shape[1]
    return _residual(rest, settings, where, dim, _renamed(maps, "layers.", "project_in"))


def from_dac(state: State, *, prefix: str = "", **settings: Any) -> ResidualQuantizer:
    """Make a quantizer of a state dict of the Descript Audio Codec, or DAC in transformers.

    Its factorised codes, chosen by direction, are `codebook_dim` and `similarity="cosine"`; its
    tables are learned, `update="gradient"`. Normalised weights are written out.

    Args:
        state: State dict or file.
        prefix: What the quantizer's names begin with, where a network has several quantizers.
        settings: Arguments of `ResidualQuantizer` to set, for example `depth_dropout=0.5`;
            `channels_first=True` unless told otherwise, as vectors are (B, dim, T) there.

    Returns:
        The quantizer, in eval mode. Its codes are (B, T, depth), where those of DAC are
        (B, depth, T).

    Raises:
        ArtifactError: If the state has no such quantizer, or several, or levels of different size.
        ConfigError: If a setting is out of its range.
    """
    where = "from_dac"
    tensors = tensors_of(state, where)
    section = section_of(tensors, r"quantizers\.0\.codebook\.weight", prefix, where)
    if section is None:
        raise ArtifactError(
            f"{where}: state has no quantizers.0.codebook.weight under prefix={prefix!r}; got "
            f"{named(tensors)}. Pass the state dict of the model or of its quantizer."
        )
    section = {name: t for name, t in section.items() if name.startswith("quantizers.")}
    maps: dict[str, Tensor] = {}
    tables: list[Tensor] = []
    while f"quantizers.{len(tables)}.codebook.weight" in section:
        level = f"quantizers.{len(tables)}."
        for name in ("in_proj", "out_proj"):
            maps[f"{level}{name}.weight"] = _written_out(section, f"{level}{name}.").squeeze(-1)
            maps[f"{level}{name}.bias"] = section[f"{level}{name}.bias"]
        tables.append(section[f"{level}codebook.weight"])
    if len({table.shape for table in tables}) > 1:
        raise ArtifactError(
            f"{where}: levels have codebooks of different sizes; got "
            f"{[tuple(table.shape) for table in tables]}. Only one codebook_dim for all is known."
        )
    known = {"update": "gradient", "similarity": "cosine", "channels_first": True}
    dim = maps["quantizers.0.in_proj.weight"].shape[1]
    codebooks = {f"layers.{level}._codebook.embed": table for level, table in enumerate(tables)}
    projections = _renamed(maps, "quantizers.", "in_proj")
    return _residual(codebooks, known | settings, where, dim, projections)


def split_projections(
    state: State, *, prefix: str = ""
) -> tuple[nn.Linear, nn.Linear, dict[str, Tensor]]:
    """Take the two linear maps around all levels out of a state dict of vector-quantize-pytorch.

    `ResidualVQ` has them where codebook_dim is not dim. They belong to the network around ours:

        project_in, project_out, rest = split_projections(state)
        quantizer = from_vector_quantize_pytorch(rest)
        x_hat = project_out(quantizer(project_in(x)).quantized)

    Args:
        state: State dict or file.
        prefix: What the quantizer's names begin with.

    Returns:
        The maps, and the state without them; its names have no prefix.

    Raises:
        ArtifactError: If there are none.
    """
    where = "split_projections"
    section = under(tensors_of(state, where), prefix)
    maps = {name: tensor for name, tensor in section.items() if _PROJECTION.fullmatch(name)}
    if len(maps) != 4:
        raise ArtifactError(
            f"{where}: state has no project_in and project_out under prefix={prefix!r}; got "
            f"{named(section)}. Pass the prefix of the quantizer, or import the state as it is."
        )
    linear = {}
    for name in ("project_in", "project_out"):
        out_features, in_features = maps[f"{name}.weight"].shape
        linear[name] = nn.Linear(in_features, out_features)
        own = {part: maps[f"{name}.{part}"] for part in ("weight", "bias")}
        linear[name].load_state_dict(own)
    rest = {name: tensor for name, tensor in section.items() if name not in maps}
    return linear["project_in"], linear["project_out"], rest


def _residual(
    section: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    where: str,
    dim: int | None = None,
    projections: Mapping[str, Tensor] | None = None,
) -> ResidualQuantizer:
    """Make a quantizer of `layers.{level}._codebook.{embed, cluster_size, …}`."""
    levels = _levels(section, where)
    tables = [level["embed"].float().flatten(0, -2) for level in levels]
    depth, codebook_dim = len(tables), tables[0].shape[1]
    counts = [level["cluster_size"].flatten() for level in levels if "cluster_size" in level]
    shared = depth > 1 and all(torch.equal(table, tables[0]) for table in tables)
    if shared:  # what one level counts, each of them does
        counts = [count * depth for count in counts[:1]]
    sizes = [len(table) for table in tables]
    known: dict[str, Any] = {"shared_codebook": shared}
    if projections is not None:
        known["codebook_dim"] = codebook_dim
    quantizer = ResidualQuantizer(
        codebook_dim if dim is None else dim,
        depth,
        sizes if len(set(sizes)) > 1 else sizes[0],
        **known | dict(settings),
    )
    padded = quantizer.state.tables.new_zeros(quantizer.state.tables.shape)
    for table, own in zip(padded, tables, strict=False):
        table[: len(own)] = own
    quantizer.set_codebooks(padded)
    for mine, theirs in zip(quantizer.state.counts, counts, strict=False):
        if theirs.sum() > 0:  # 0 before the first training step, when nothing is dead
            mine[: len(theirs)] = theirs
    if quantizer.state.sums is not None:
        quantizer.state.sums.copy_(quantizer.state.tables * quantizer.state.counts[..., None])
    if projections is not None:
        assert isinstance(quantizer.projections, LevelProjections)
        quantizer.projections.load_state_dict(projections)
    return quantizer.eval()


def _grouped(
    section: Mapping[str, Tensor], settings: Mapping[str, Any], where: str
) -> GroupedResidualQuantizer:
    parts: list[ResidualQuantizer] = []
    while own := under(section, f"rvqs.{len(parts)}."):
        shared = {n: v for n, v in settings.items() if n not in ("rotation", "channels_first")}
        parts.append(_residual(own, shared, where))
    first = parts[0]
    grouped = GroupedResidualQuantizer(
        first.dim * len(parts),
        first.depth,
        first.codebook_size,
        groups=len(parts),
        **{"shared_codebook": first.shared_codebook} | dict(settings),
    )
    for mine, theirs in zip(grouped._quantizers(), parts, strict=True):
        mine.load_state_dict(theirs.state_dict())
    return grouped.eval()


def _single(
    section: Mapping[str, Tensor], settings: Mapping[str, Any], where: str
) -> ResidualQuantizer:
    nested = {
        f"layers.0.{name}" if name.startswith("_codebook") else name: tensor
        for name, tensor in section.items()
    }
    return _residual(nested, settings, where)


def _binary(
    section: Mapping[str, Tensor], settings: Mapping[str, Any], where: str
) -> ResidualBinaryQuantizer:
    maps = {name: tensor for name, tensor in section.items() if _PROJECTION.fullmatch(name)}
    masks = [name for name in section if re.fullmatch(r"layers\.\d+\.mask", name)]
    refuse_rest(section, {*maps, *masks}, where)
    bits = len(section["layers.0.mask"])
    quantizer = ResidualBinaryQuantizer(_outer_dim(maps, bits), len(masks), bits, **settings)
    quantizer.load_state_dict(maps)
    return quantizer.eval()


def _scalar(
    section: Mapping[str, Tensor], settings: Mapping[str, Any], where: str
) -> ResidualScalarQuantizer:
    maps = {name: tensor for name, tensor in section.items() if _PROJECTION.fullmatch(name)}
    refuse_rest(section, set(maps), where)
    quantizer = ResidualScalarQuantizer(_outer_dim(maps, len(settings["levels"])), **settings)
    quantizer.load_state_dict(maps)
    return quantizer.eval()


_KINDS: tuple[tuple[str, Callable[..., Quantizer]], ...] = (
    (r"rvqs\.0\.layers\.0\._codebook\.embed", _grouped),
    (r"layers\.0\._codebook\.embed", _residual),
    (r"layers\.0\.mask", _binary),
    (r"_codebook\.embed", _single),
)


def _outer_dim(maps: Mapping[str, Tensor], code_dim: int) -> int:
    return maps["project_in.weight"].shape[1] if maps else code_dim


def _levels(section: Mapping[str, Tensor], where: str) -> list[dict[str, Tensor]]:
    """Return the tensors of each level's codebook, or refuse what ours cannot be."""
    maps = [name for name in section if _PROJECTION.fullmatch(name)]
    if maps:
        raise ArtifactError(
            f"{where}: state has one pair of projections around all levels, which belongs to the "
            f"network around our quantizers; got {', '.join(sorted(maps))}. Call "
            "split_projections(state) and import what is left."
        )
    found = {name: match for name in section if (match := _CODEBOOK.fullmatch(name))}
    refuse_rest(section, set(found), where)
    levels: dict[int, dict[str, Tensor]] = {}
    for name, match in found.items():
        levels.setdefault(int(match[1]), {})[match[2]] = section[name]
    ordered = [levels[level] for level in sorted(levels)]
    for number, level in enumerate(ordered):
        if level["embed"].ndim == 3 and len(level["embed"]) > 1:
            raise ArtifactError(
                f"{where}: state has several heads; got codebooks of shape "
                f"{tuple(level['embed'].shape)} in level {number}. Only one head is known."
            )
        started = [tensor for name, tensor in level.items() if name.startswith("init")]
        if started and not bool(started[0].all()):
            raise ArtifactError(
                f"{where}: k-means has not run yet; got no codebook in level {number}. Make a new "
                "quantizer in its place."
            )
    return ordered


def _renamed(maps: Mapping[str, Tensor], container: str, down: str) -> dict[str, Tensor]:
    """Return projections `{container}{level}.{name}.{part}` under the names ours have."""
    renamed = {}
    for name, tensor in maps.items():
        level, kind, part = name.removeprefix(container).split(".")
        renamed[f"{'down' if kind == down else 'up'}.{level}.{part}"] = tensor
    return renamed


def _written_out(section: Mapping[str, Tensor], home: str) -> Tensor:
    """Return a weight that may be stored as its length (a row each) and direction."""
    names = (("weight_g", "weight_v"), ("parametrizations.weight.original0", None))
    for length, direction in names:
        if home + length in section:
            direction = direction or "parametrizations.weight.original1"
            v = section[home + direction]
            return section[home + length] * v / v.flatten(1).norm(dim=1)[:, None, None]
    return section[home + "weight"]
