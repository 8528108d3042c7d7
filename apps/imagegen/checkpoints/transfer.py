"""Releases of the authors as run folders, and run folders as releases."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagegen.autoencoder import RQVAE
from imagegen.checkpoints.release import Release, export_release
from imagegen.checkpoints.weights import find_checkpoint
from imagegen.guards import enough_room
from imagegen.runs import Run
from imagegen.settings import (
    AutoencoderConfig,
    Config,
    DataConfig,
    QuantizerConfig,
    SamplingConfig,
    Stage1Config,
    Stage2Config,
    TransformerConfig,
)
from imagegen.shifts import count_shifts
from imagegen.text import Tokenizer, load_tokenizer
from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.io.atomic import atomic_folder
from rqtoolkit.transformer import RQTransformer

__all__ = ["export_run", "import_run"]

_PROVENANCE = "provenance.json"
# How the authors cropped: (source, crop, flip) by the name of the data.
_DATA = {
    "imagenet": ("imagenet", "random", True),
    "ffhq": ("ffhq", "zoom", True),
    "lsun": ("lsun", "center", False),
    "cc3m": ("cc3m", "random", False),
}


def import_run(
    folder: str | Path,
    out: str | Path,
    *,
    ema: bool = False,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write a release as a run folder: sampled, evaluated and gone on from as any run.

    Beside what every run has, provenance.json says where it came from: the checksum and size of
    every file, and what was left out.

    Args:
        folder: As for `imagegen.import_release`.
        out: New run folder.
        ema: As for `imagegen.import_release`.
        tokenizer: What `imagegen.text.load_tokenizer` reads, for a model of texts: releases name
            theirs and do not hold it.
        progress: Called as progress(description, done, total).

    Returns:
        Notes: what was ignored, and what our training has no counterpart for.

    Raises:
        ArtifactError: As `import_release` does, or if `out` is there already.
        ConfigError: As `import_release` does, or if the tokenizer does not fit the model.
    """
    release = Release.open(folder)
    words = _tokenizer(release, tokenizer)
    files = [release.stage1 / "config.yaml", find_checkpoint(release.stage1)]
    if release.stage2:
        files += [release.stage2 / "config.yaml", find_checkpoint(release.stage2)]
    with enough_room(Path(out)), atomic_folder(out) as temporary:
        run = Run.create(temporary, _run_config(release))
        Run.open(temporary)  # reads every value with its range, before the work
        report(progress, "Importing", 0, 3)
        autoencoder, transformer, notes = release.load(ema=ema)
        report(progress, "Importing", 1, 3)
        autoencoder.save(run.autoencoder_path)
        if transformer is not None:
            transformer.save(run.transformer_path)
        if words is not None:
            words.save(temporary / "tokenizer.json")
        elif release.text_length is not None:
            notes.append("texts need a tokenizer: import with --tokenizer to sample from them")
        report(progress, "Importing", 2, 3)
        provenance = {
            "format": "rq-vae-transformer",
            "release": release.name,
            "dataset": release.dataset,
            "weights": "state_dict_ema" if ema else "state_dict",
            "files": {f"{path.parent.name}/{path.name}": _fingerprint(path) for path in files},
            "notes": notes,
        }
        text = json.dumps(provenance, indent=2) + "\n"
        (temporary / _PROVENANCE).write_text(text, encoding="utf-8")
        report(progress, "Importing", 3, 3)
    return notes


def export_run(run: Run, out: str | Path) -> list[str]:
    """Write the finished stages of a run as a new folder that the authors' code reads.

    Returns:
        Notes: what the authors' layout has no place for.

    Raises:
        ConfigError: If the authors' code cannot build such a model.
        ArtifactError: If stage 1 is not finished, or `out` is there already.
    """
    autoencoder = RQVAE.load(run.require(run.autoencoder_path, 1))
    transformer = None
    if run.transformer_path.is_file():
        transformer = RQTransformer.load(run.transformer_path)
    config, notes = run.config, list[str]()
    stage2 = config.stage2
    told = transformer is not None and transformer.num_classes is not None
    shifts = count_shifts(stage2.shift) if told else 1
    if shifts > 1:
        notes.append(f"left out what tells of moved images, {shifts - 1} conditions of {shifts}")
    if transformer is not None and transformer.arguments["label_dropout"] > 0:
        notes.append("left out the null class: the authors' code has no guidance")
    if config.sampling.cfg_scale != 1:
        notes.append(f"left out cfg_scale {config.sampling.cfg_scale:g}")
    export_release(
        autoencoder,
        transformer,
        out,
        dataset=_dataset(run),
        sampling=_official_sampling(config.sampling, notes),
        commitment_weight=config.stage1.commitment_weight,
        tau=stage2.tau if transformer is None else _tau(stage2, transformer),
        conditions_per_class=shifts,
    )
    return notes


def _tokenizer(release: Release, path: str | Path | None) -> Tokenizer | None:
    """Load the tokenizer of a release, and refuse one that is not its own."""
    if path is None:
        return None
    if release.text_length is None or release.transformer is None:
        raise ConfigError(
            f"import: tokenizer={path} has no use; got a release without texts. Leave it out."
        )
    tokenizer = load_tokenizer(path, length=release.text_length)
    rows = release.transformer.transformer["text_vocab"]
    if tokenizer.vocabulary > rows:
        raise ConfigError(
            f"import: tokenizer={path} has {tokenizer.vocabulary} tokens; got a model of {rows}. "
            f"Take the tokenizer it was trained with."
        )
    return tokenizer


def _run_config(release: Release) -> Config:
    first, second = release.autoencoder, release.transformer
    known = next((name for name in _DATA if release.dataset.lower().startswith(name)), None)
    source, crop, flip = _DATA[known] if known else ("folder", "center", False)
    stages: dict[str, Any] = {}
    if second is not None:
        stages["transformer"] = TransformerConfig(**_fields(TransformerConfig, second.transformer))
        stages["stage2"] = Stage2Config(
            tau=second.tau, text_weight=second.transformer.get("text_weight", 0.1)
        )
        stages["sampling"] = SamplingConfig(**second.sampling)
    return Config(
        name=release.name,
        data=DataConfig(
            source=source, resolution=first.autoencoder["resolution"], crop=crop, flip=flip
        ),
        autoencoder=AutoencoderConfig(**_fields(AutoencoderConfig, first.autoencoder)),
        quantizer=QuantizerConfig(**_fields(QuantizerConfig, first.quantizer)),
        stage1=Stage1Config(commitment_weight=first.commitment_weight),
        **stages,
    )


def _fields(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments that a section of the configuration has, lists as tuples."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in arguments.items()
        if name in names
    }


def _official_sampling(settings: SamplingConfig, notes: list[str]) -> dict[str, Any]:
    temperature = settings.temperature
    if isinstance(temperature, tuple):
        temperature = temperature[0]
        notes.append(f"wrote the first temperature, {temperature:g}, for all levels")
    kept = settings.top_k
    return {
        "temp": temperature,
        "top_k": list(kept) if isinstance(kept, tuple) else kept or None,
        "top_p": list(settings.top_p) if isinstance(settings.top_p, tuple) else settings.top_p,
    }


def _tau(stage2: Stage2Config, transformer: RQTransformer) -> float:
    """Return the temperature of soft targets in the units of a squared distance."""
    codebooks = transformer.embedding.codebooks
    if codebooks is None or not stage2.relative_tau:
        return stage2.tau
    norms = codebooks.square().sum(-1)
    return stage2.tau * float(norms[norms > 0].mean())  # without padding


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _dataset(run: Run) -> str:
    """Return what the data are called: by the release a run came from, else by their source."""
    try:
        provenance = json.loads((run.path / _PROVENANCE).read_text(encoding="utf-8"))
        return str(provenance["dataset"])
    except (OSError, ValueError, TypeError, KeyError):
        return run.config.data.source
