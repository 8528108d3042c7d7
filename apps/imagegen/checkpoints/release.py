"""A release of the authors, `stage1/` and `stage2/`, as our models, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor, nn

from imagegen.autoencoder import RQVAE
from imagegen.checkpoints.official_config import OfficialConfig
from imagegen.checkpoints.stage1 import (
    AutoencoderArguments,
    autoencoder_arch,
    autoencoder_arguments,
    autoencoder_from_official,
    autoencoder_to_official,
)
from imagegen.checkpoints.stage2 import (
    TransformerArguments,
    transformer_arch,
    transformer_arguments,
    transformer_from_official,
    transformer_to_official,
)
from imagegen.checkpoints.weights import (
    check_official,
    find_checkpoint,
    read_weights,
    write_weights,
)
from imagegen.guards import enough_room
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.io.artifact import constructing
from rqtoolkit.io.atomic import atomic_folder
from rqtoolkit.quantizers import ResidualQuantizer
from rqtoolkit.transformer import RQTransformer

__all__ = ["Release", "export_release", "import_release"]

_DATASET = ("type", "dataset")  # where their image and text configurations name the data
_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class Release:
    """What lies in the folders of a release, its configurations read and its tensors not.

    Attributes:
        name: Name of the folder.
        stage1: Folder of the RQ-VAE.
        stage2: Folder of the RQ-Transformer, None without.
        autoencoder: What the configuration of stage 1 says.
        transformer: What that of stage 2 says, None without.
        dataset: The data the release names, such as "imagenet" or "LSUN-cat"; "" where it does not.
    """

    name: str
    stage1: Path
    stage2: Path | None
    autoencoder: AutoencoderArguments
    transformer: TransformerArguments | None
    dataset: str
    ignored: tuple[str, ...]

    @classmethod
    def open(cls, folder: str | Path) -> "Release":
        """Read the configurations of a release.

        Args:
            folder: A folder with `stage1/` and perhaps `stage2/`; a `stage1/` by itself; or a
                `stage2/`, whose `stage1/` has to lie beside it.

        Raises:
            ArtifactError: If nothing of that kind is there, or a configuration is damaged.
            ConfigError: If a configuration asks for what has no counterpart here.
        """
        folder = Path(folder).absolute()
        stage1, stage2 = _find_stages(folder)
        config1 = OfficialConfig.read(stage1 / "config.yaml")
        config2 = OfficialConfig.read(stage2 / "config.yaml") if stage2 else None
        autoencoder = autoencoder_arguments(config1)
        transformer = transformer_arguments(config2) if config2 else None
        if config2 and transformer:
            _check_pair(config2, autoencoder, transformer)
        names = [c.find(f"dataset.{key}", "") for c in (config2, config1) if c for key in _DATASET]
        dataset = next((str(name) for name in names if name), "")
        name = (stage1.parent if stage1 != folder or stage2 else folder).name
        ignored = [
            f"stage{stage}/config.yaml: ignored {', '.join(config.unasked('arch'))}"
            for stage, config in ((1, config1), (2, config2))
            if config and config.unasked("arch")
        ]
        return cls(name, stage1, stage2, autoencoder, transformer, dataset, tuple(ignored))

    @property
    def text_length(self) -> int | None:
        """Tokens of a text condition, None for other models."""
        return self.transformer.transformer.get("text_length") if self.transformer else None

    def load(
        self, *, ema: bool = False, device: str | torch.device = "cpu"
    ) -> tuple[RQVAE, RQTransformer | None, list[str]]:
        """Read the tensors: RQ-VAE, RQ-Transformer or None, both in eval mode, and notes."""
        key = "state_dict_ema" if ema else "state_dict"
        notes = [*self.ignored, *self.autoencoder.notes]
        keys = (key,) if self.stage2 is None else ("state_dict", "state_dict_ema")
        autoencoder = self._load_autoencoder(keys, notes)
        if self.stage2 is None or self.transformer is None:
            return autoencoder.to(device), None, notes
        notes += self.transformer.notes
        transformer = self._load_transformer(self.stage2, self.transformer, autoencoder, key, notes)
        return autoencoder.to(device), transformer.to(device), notes

    def _load_autoencoder(self, keys: tuple[str, ...], notes: list[str]) -> RQVAE:
        path = find_checkpoint(self.stage1)
        arguments = self.autoencoder
        with constructing(self.stage1 / "config.yaml"), torch.device("meta"):
            model = RQVAE(ResidualQuantizer(**arguments.quantizer), **arguments.autoencoder)
        sizes = model.quantizer.codebook_sizes
        official, found = read_weights(path, *keys)
        expected = autoencoder_to_official(model.state_dict(), codebook_sizes=sizes)
        check_official(path, expected, official)
        state = autoencoder_from_official(
            official,
            codebook_sizes=sizes,
            shared_codebook=arguments.quantizer["shared_codebook"],
            where=f"import: {path}",
        )
        notes += [f"stage1/{note}" for note in found]
        return _fill(model, state)

    def _load_transformer(
        self,
        folder: Path,
        arguments: TransformerArguments,
        autoencoder: RQVAE,
        key: str,
        notes: list[str],
    ) -> RQTransformer:
        path = find_checkpoint(folder)
        learned = arguments.code_dim is None
        codebooks = None if learned else autoencoder.quantizer.codebooks
        with constructing(folder / "config.yaml"), torch.device("meta"):
            model = RQTransformer(**arguments.transformer, codebooks=codebooks)
        official, found = read_weights(path, key)
        state = model.state_dict()
        check_official(path, transformer_to_official(state, model.arguments), official)
        notes += [f"stage2/{note}" for note in found]
        where = f"import: {path}"
        return _fill(
            model, transformer_from_official(official, state, model.arguments, where=where)
        )


def import_release(
    folder: str | Path, *, ema: bool = False, device: str | torch.device = "cpu"
) -> tuple[RQVAE, RQTransformer | None]:
    """Read a release of the paper's authors.

    Args:
        folder: A folder with `stage1/` and `stage2/`, each with model.pt and config.yaml; or one
            of the two.
        ema: Take `state_dict_ema`, an average over training, in place of `state_dict`. As in the
            authors' sampling it concerns the RQ-Transformer, whose RQ-VAE is `state_dict` where its
            file has one; an RQ-VAE by itself is averaged.
        device: Where the models go.

    Returns:
        The RQ-VAE, and the RQ-Transformer or None where there is no stage 2; in eval mode.

    Raises:
        ArtifactError: If a file is missing, damaged or holds code, or tensors are missing, left
            over or misshaped.
        ConfigError: If a configuration asks for what has no counterpart here.

    Example:
        >>> rqvae, prior = import_release("imagenet_1.4B")
        >>> images = rqvae.decode(prior.generate(4, cond=torch.tensor([207, 360, 387, 974])))
    """
    autoencoder, transformer, _ = Release.open(folder).load(ema=ema, device=device)
    return autoencoder, transformer


def export_release(
    autoencoder: RQVAE,
    transformer: RQTransformer | None,
    folder: str | Path,
    *,
    dataset: str = "",
    sampling: Mapping[str, Any] | None = None,
    commitment_weight: float = 0.25,
    tau: float = 0.5,
    conditions_per_class: int = 1,
) -> None:
    """Write models as a new folder that the authors' code reads.

    The null class of guidance is left out: the authors' code has no use for it.

    Args:
        autoencoder: An RQ-VAE with a residual quantizer.
        transformer: An RQ-Transformer of its codes, or None.
        folder: New folder.
        dataset: Name of the data, as the authors' configurations have it.
        sampling: `temp`, `top_k` and `top_p` for stage 2; None draws from the plain model.
        commitment_weight: Weight of the commitment loss the RQ-VAE was trained with.
        tau: Temperature of the soft targets the RQ-Transformer was trained with.
        conditions_per_class: The transformer has so many conditions a class, of which the first is
            written.

    Raises:
        ConfigError: If the authors' code cannot build such a model.
        ArtifactError: If the folder is there already.
    """
    quantizer = autoencoder.quantizer
    if not isinstance(quantizer, ResidualQuantizer):
        raise ConfigError(
            f"export: bottleneck={type(quantizer).__name__} is unknown to the authors' code; got "
            f"an autoencoder of another kind. Only those with bottleneck rq can be exported."
        )
    arch1 = autoencoder_arch(
        autoencoder.arguments, _arguments(quantizer), commitment_weight=commitment_weight
    )
    tree1 = {"arch": arch1, "dataset": {"type": dataset}}
    state1 = autoencoder_to_official(
        autoencoder.state_dict(), codebook_sizes=quantizer.codebook_sizes
    )
    stages = [("stage1", tree1, state1)]
    if transformer is not None:
        codebooks = transformer.embedding.codebooks
        _check_codewords(codebooks, quantizer)
        code_dim = None if codebooks is None else quantizer.dim
        arch2 = transformer_arch(
            transformer.arguments, code_dim=code_dim, conditions_per_class=conditions_per_class
        )
        tree2 = {
            "arch": arch2,
            "dataset": {"type": dataset, "vocab_size": arch2["vocab_size"]},
            "loss": {"type": "soft_target_cross_entropy", "temp": tau, "stochastic_codes": True},
            "sampling": {"temp": 1.0, "top_k": None, "top_p": 1.0, **(sampling or {})},
        }
        if transformer.arguments["text_length"]:
            weight = transformer.arguments["text_weight"]
            tree2["loss"] |= {"txt_weight": weight, "img_weight": 1 - weight}
        state2 = transformer_to_official(
            transformer.state_dict(),
            transformer.arguments,
            conditions_per_class=conditions_per_class,
        )
        stages.append(("stage2", tree2, state2))
    with enough_room(Path(folder)), atomic_folder(folder) as temporary:
        for name, tree, state in stages:
            (temporary / name).mkdir()
            text = yaml.safe_dump(tree, sort_keys=False)
            (temporary / name / "config.yaml").write_text(text, encoding="utf-8")
            write_weights(temporary / name / "model.pt", _on_cpu(state))


def _find_stages(folder: Path) -> tuple[Path, Path | None]:
    if not folder.is_dir():
        raise ArtifactError(
            f"import: {folder} is no folder. Unpack the release, and name the folder with stage1 "
            f"and stage2 in it."
        )
    if (folder / "stage1").is_dir():
        stage2 = folder / "stage2"
        return folder / "stage1", stage2 if stage2.is_dir() else None
    if (folder / "config.yaml").is_file():
        kind = OfficialConfig.read(folder / "config.yaml").find("arch.type")
        if kind != "rq-transformer":
            return folder, None
        if (folder.parent / "stage1").is_dir():
            return folder.parent / "stage1", folder
        raise ArtifactError(
            f"import: {folder} is an RQ-Transformer and needs its RQ-VAE; got no "
            f"{folder.parent / 'stage1'}. Put it there: the two have to be of one release."
        )
    raise ArtifactError(
        f"import: {folder} is no release; got neither stage1 nor config.yaml in it. Name the "
        f"folder that was unpacked."
    )


def _check_pair(
    config: OfficialConfig, autoencoder: AutoencoderArguments, transformer: TransformerArguments
) -> None:
    """Refuse an RQ-Transformer of another RQ-VAE."""
    first, second = autoencoder.autoencoder, transformer.transformer
    reduction = 2 ** (len(first["multipliers"]) - 1) * first["fold"]
    side = first["resolution"] // reduction
    quantizer = autoencoder.quantizer
    pairs = {
        "arch.block_size": ([side, side], second["positions"]),
        "arch.block_size (depth)": (quantizer["depth"], second["depth"]),
        "arch.vocab_size": (quantizer["codebook_size"], second["codebook_size"]),
        "arch.input_embed_dim": (quantizer["dim"], transformer.code_dim or quantizer["dim"]),
    }
    for name, (needed, given) in pairs.items():
        if needed != given:
            raise ArtifactError(
                f"{config.where}: {name}={given} does not fit stage 1; got {needed} there. Take "
                f"both stages from one release."
            )


def _check_codewords(codebooks: Tensor | None, quantizer: ResidualQuantizer) -> None:
    own = quantizer.codebooks
    if codebooks is not None and not torch.equal(codebooks.to(own.device), own):
        raise ConfigError(
            "export: the RQ-Transformer reads other codewords than the RQ-VAE has; got a pair that "
            "was not trained together. The authors' files keep them in stage 1 alone."
        )


def _arguments(quantizer: ResidualQuantizer) -> dict[str, Any]:
    names = ("dim", "depth", "codebook_size", "shared_codebook", "decay", "restart_threshold")
    return {name: getattr(quantizer, name) for name in (*names, "channels_first", "beam")}


def _fill(model: _Model, state: Mapping[str, Tensor]) -> _Model:
    """Give a model without data its tensors."""
    model.load_state_dict(state, assign=True)
    return model.eval()


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move tensors, those that several names share once: torch.save then writes them once."""
    moved: dict[int, Tensor] = {}
    for tensor in state.values():
        moved.setdefault(id(tensor), tensor.detach().cpu())
    return {name: moved[id(tensor)] for name, tensor in state.items()}
