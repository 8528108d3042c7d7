"""The whole jobs behind the commands: train a run, sample from it, score it, write its report."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from imagegen.autoencoder import RQVAE
from imagegen.checkpointing import checkpoints
from imagegen.checks import check_settings, check_training
from imagegen.data import ImageData, ImageSet, open_images
from imagegen.distributed import join
from imagegen.guards import enough_memory
from imagegen.initialize import adopt_stage1, offers
from imagegen.runs import Run, exclusive
from imagegen.settings import Config
from imagegen.split import check_split, write_split
from imagegen.stage1 import train_stage1
from imagegen.stage2 import train_stage2
from imagegen.text import Tokenizer, keep_tokenizer, training_tokenizer
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.transformer import RQTransformer

__all__ = ["load_models", "load_run_images", "load_split", "train_run"]


def load_run_images(config: Config, progress: Progress | None = None) -> tuple[ImageData, ImageSet]:
    """Load the training and held-out images that a configuration names."""
    data = config.data
    if data.path is None and data.source != "digits":
        raise ConfigError(
            f"config {config.name}: data.source={data.source} needs images; got no data.path. "
            f"Pass --data PATH, or set data.path."
        )
    settings = dataclasses.asdict(data)
    for name in ("workers", "tokenizer"):  # what reads the images later, not which
        settings.pop(name)
    return open_images(**settings, progress=progress)


def load_split(run: Run, progress: Progress | None = None) -> tuple[ImageData, ImageSet]:
    """Load the training and held-out images of a run, as they were when it began.

    Raises:
        DataError: If the data have changed since.
    """
    train, held_out = load_run_images(run.config, progress)
    check_split(run.path, train, held_out)
    return train, held_out


def train_run(
    config: Config,
    path: str | Path,
    *,
    stages: Sequence[int] = (1, 2),
    resume: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train one or both stages of a configuration in a run folder.

    Under torchrun, every process calls this and takes its share; the first alone writes.

    Args:
        config: What to train.
        path: Folder of the run.
        stages: Stages to train; 2 alone needs stage 1 finished in the same run, or takes it as it
            is from where `config.init_from` points.
        resume: Go on with a run that was interrupted, or finished only stage 1.
        replace: Remove an earlier run from the folder.
        progress: Called as progress(description, done, total).

    Everything is checked before the folder is changed, and what needs no images before they are
    read. A new folder holds a lock alone until then, and goes with it if the run is refused.

    Raises:
        ConfigError: If the folder is taken, another process trains in it, the images are not
            named, or sizes do not fit.
        ArtifactError: If stage 2 is asked for and stage 1 is not finished, or a file of the run
            is damaged.
        DataError: If the images are not those the run began with, or the loss is no longer finite.
        ShapeError: If training and held-out images have different channels.
    """

    def check() -> Tokenizer | None:
        run = Run.check(path, config, resume=resume, replace=replace)
        if _adopts(run, stages) and not offers(config.init_from, 1):
            run.require(run.autoencoder_path, 1)
        tokenizer = training_tokenizer(run, anew=replace)
        check_settings(config, tokenizer=tokenizer, stages=stages, processes=ranks.size)
        for stage in stages:
            offers(config.init_from, stage)  # refuses what holds no model at all
        return tokenizer

    def enter() -> None:
        if ranks.main:
            whole.enter_context(exclusive(path))

    def read() -> tuple[ImageData, ImageSet]:
        with enough_memory("reading the images", "Lower data.resolution, or data.held_out."):
            train, held_out = load_run_images(config, shown)
        starting = {1, *stages} if _adopts(Run(Path(path), config), stages) else None
        check_training(
            config,
            train,
            held_out,
            tokenizer=tokenizer,
            stages=stages,
            starting=starting,
            processes=ranks.size,
        )
        if not replace:
            check_split(path, train, held_out)
        return train, held_out

    with join() as ranks, ExitStack() as whole:
        shown = progress if ranks.main else None
        tokenizer = ranks.together(check)
        ranks.together(enter)
        train, held_out = ranks.together(read)
        if ranks.main:
            alone = Run.create(path, config, resume=resume, replace=replace)
            keep_tokenizer(alone, tokenizer)
            write_split(path, train, held_out)
            if _adopts(alone, stages):
                adopt_stage1(alone)
        ranks.wait()
        run = Run(Path(path), config, ranks)
        if 1 in stages:
            with enough_memory("stage 1", _relief(1)):
                train_stage1(run, train, held_out, progress=shown)
        if 2 in stages:
            with enough_memory("stage 2", _relief(2)):
                autoencoder = _finished_autoencoder(run)
                train_stage2(run, autoencoder, train, held_out, progress=shown)
    return run


def _adopts(run: Run, stages: Sequence[int]) -> bool:
    """Return whether a run has to take over a finished stage 1 from elsewhere."""
    return 1 not in stages and not run.autoencoder_path.exists()


def _relief(stage: int) -> str:
    """Return what makes a stage need less memory."""
    sizes = {1: "autoencoder", 2: "transformer"}[stage]
    return (
        f"Set stage{stage}.checkpointing=true and --resume; or, in a new run, raise "
        f"stage{stage}.accumulate, or lower stage{stage}.batch_size or the sizes of the {sizes}."
    )


def _finished_autoencoder(run: Run) -> RQVAE:
    """Load the finished RQ-VAE; where its file is damaged, say how to have it written again."""
    path = run.require(run.autoencoder_path, 1)
    try:
        return RQVAE.load(path, run.device)
    except ArtifactError as error:
        advice = f"remove the file (`rm {path}`) and --resume again"
        if checkpoints(run, 1):
            advice = "run `--stage 1 --resume`, which writes it from the last checkpoint"
        raise ArtifactError(f"{error} In this run, {advice}.") from error


def load_models(run: Run) -> tuple[RQVAE, RQTransformer]:
    """Load both finished models of a run.

    Raises:
        ArtifactError: If one is missing or damaged, or the transformer is of other codes than the
            autoencoder's.
    """
    autoencoder = RQVAE.load(run.require(run.autoencoder_path, 1), run.device)
    path = run.require(run.transformer_path, 2)
    transformer = RQTransformer.load(path, device=run.device)
    misfit = _misfit(autoencoder, transformer)
    if misfit:
        raise ArtifactError(
            f"run: {path} must model the codes of {run.autoencoder_path.name} beside it; got "
            f"{misfit}. Bring back the two models that were trained together."
        )
    return autoencoder, transformer


def _misfit(autoencoder: RQVAE, transformer: RQTransformer) -> str:
    """Return in what the codes of two models differ, "" where they are the same."""
    if not autoencoder.quantizes:
        return "an autoencoder without codes"
    codes = (autoencoder.grid, tuple(autoencoder.quantizer.codebook_sizes))
    modelled = (tuple(transformer.positions), tuple(transformer.codebook_sizes))
    for name, ours, theirs in zip(("grid", "codebook sizes"), codes, modelled, strict=True):
        if ours != theirs:
            return f"{name} {list(theirs)} in place of {list(ours)}"
    kept, codewords = transformer.embedding.codebooks, autoencoder.quantizer.codebooks
    if kept is None:  # it learned a table of its own
        return ""
    if kept.shape[1:] != codewords.shape[1:] or not (kept == codewords.to(kept.dtype)).all():
        return "other codewords"
    return ""
