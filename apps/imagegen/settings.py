"""What a configuration holds: one dataclass a section, each field with its range.

Nothing here reads a file or builds anything; `imagegen.config` does the reading and checking. Upper
limits of sizes are beyond any use: they catch a slip of the pen before memory runs out.
"""

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "CROPS",
    "FITS",
    "SOURCES",
    "AutoencoderConfig",
    "Config",
    "DataConfig",
    "DiscriminatorConfig",
    "PerceptualConfig",
    "QuantizerConfig",
    "SamplingConfig",
    "Stage1Config",
    "Stage2Config",
    "StageConfig",
    "TransformerConfig",
]

SOURCES = (  # of images, as `imagegen.data.open_images` describes them
    "digits",
    "npz",
    "folder",
    "list",
    "webdataset",
    "huggingface",
    "imagenet",
    "ffhq",
    "lsun",
    "cc3m",
)
FITS = ("resize", "pad")
CROPS = ("center", "random", "zoom", "dalle")


def _in(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A field with a range, ends included; lists are checked element by element."""
    metadata = {"low": low, "high": high}
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _one_of(*choices: str) -> Any:
    """A field with listed values, the first the default."""
    return field(default=choices[0], metadata={"choices": choices})


def _none_or(*choices: str) -> Any:
    """A field with listed values, or nothing, the default."""
    return field(default=None, metadata={"choices": choices})


def _some_of(*choices: str) -> Any:
    """A field that lists any of these values, none by default."""
    return field(default_factory=tuple, metadata={"choices": choices})


@dataclass(frozen=True)
class DataConfig:
    """Arguments of `imagegen.data.open_images`; the split has its own seed, runs share it.

    `crop` and `flip` say how a training image may differ from one epoch to the next; held-out
    images are always the central square. `corrupt` is the share of unreadable images that is
    skipped before the set is refused. The columns name what is called otherwise than usual in a
    list, in shards or in a Hugging Face data set.
    """

    source: str = _one_of(*SOURCES)
    path: str | None = None  # load_config makes it absolute, from the working directory
    resolution: int = _in(16, 4, 4096)
    fit: str = _one_of(*FITS)
    crop: str = _one_of(*CROPS)
    flip: bool = False
    held_out: float | None = _in(None, 1e-6)
    held_out_path: str | None = None  # absolute, as path
    split_seed: int = _in(0, 0, 2**31 - 1)
    corrupt: float = _in(0.001, 0.0, 0.5)
    image_column: str | None = None
    label_column: str | None = None
    text_column: str | None = None
    workers: int = _in(0, 0, 256)
    tokenizer: str | None = None  # a tokenizer.json; texts are then what the transformer is told


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of `imagegen.autoencoder.RQVAE`, and what stands in its middle.

    "rq" is the residual quantizer, "vq" a single level of it with the losses of VQ-VAE, "kl" the
    Gaussian of a VAE, which has no codes. A layer has as many of the `norm_groups` as divide its
    channels.
    """

    bottleneck: str = _one_of("rq", "vq", "kl")
    channels: int = _in(128, 1, 8192)
    multipliers: tuple[int, ...] = _in((1, 1, 2, 2, 4, 4), 1, 256)
    blocks: int = _in(2, 1, 64)
    attention: tuple[int, ...] = _in((8,), 1, 4096)
    middle: bool = True
    latent_channels: int = _in(256, 1, 16_384)
    code_dim: int = _in(256, 1, 16_384)
    fold: int = _in(1, 1, 256)
    norm_groups: int = _in(32, 1, 8192)
    dropout: float = _in(0.0, 0.0, 0.9)


@dataclass(frozen=True)
class QuantizerConfig:
    """Arguments of `rqtoolkit.ResidualQuantizer`; its dim follows from the autoencoder.

    `codebook_size` is one number for all levels, or a list with one a level.
    """

    depth: int = _in(4, 1, 64)
    codebook_size: int | tuple[int, ...] = _in(16384, 2, 2**20)
    shared_codebook: bool = True
    update: str = _one_of("ema", "gradient")
    decay: float = _in(0.99, 0.0, 0.99999)
    restart_threshold: float = _in(0.25, 0.0, 1.0)


@dataclass(frozen=True)
class StageConfig:
    """What both stages share: length, batch, optimizer, averaging, and how often to report.

    `batch_size` is that of one optimizer step over all processes; `accumulate` divides it into so
    many passes. `checkpointing` recomputes activations in the backward pass to save memory. A run
    stops, its last good checkpoint kept, when the loss or the norm of a gradient is not finite or
    over `loss_limit` or `gradient_limit`.
    """

    steps: int = _in(10_000, 1, 10**9)
    dtype: str | None = _none_or("float32", "bfloat16")  # in place of the run's
    batch_size: int = _in(64, 1, 2**20)
    accumulate: int = _in(1, 1, 2**20)
    learning_rate: float = _in(4e-5, 1e-8, 1.0)
    betas: tuple[float, float] = _in((0.9, 0.95), 0.0, 0.99999)
    weight_decay: float = _in(0.0, 0.0, 1.0)
    warmup_steps: int = _in(0, 0, 10**9)
    schedule: str = _one_of("constant", "cosine")
    clip_norm: float | None = _in(None, 1e-6)
    loss_limit: float | None = _in(None, 1e-6)
    gradient_limit: float | None = _in(None, 1e-6)
    weight_average: float = _in(0.0, 0.0, 0.99999)
    checkpointing: bool = False
    shift: int = _in(0, 0, 8)
    log_every: int = _in(50, 1, 10**9)
    checkpoint_every: int = _in(1000, 1, 10**9)
    keep_checkpoints: int = _in(2, 1, 10**9)  # one may be damaged
    sample_every: int = _in(1000, 1, 10**9)


@dataclass(frozen=True)
class PerceptualConfig:
    """LPIPS in the loss of stage 1; off at weight 0.

    `vgg` and `heads` are the public weights, files of torchvision's VGG16 and of LPIPS v0.1.
    """

    weight: float = _in(0.0, 0.0, 1e6)
    vgg: str | None = None
    heads: str | None = None


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The PatchGAN of stage 1; off at weight 0.

    The adversarial loss begins at step `start` and grows to its full weight over `ramp` steps.
    `penalty_every` applies R1 to one step in so many, at so many times its weight.
    """

    weight: float = _in(0.0, 0.0, 1e6)
    loss: str = _one_of("hinge", "non_saturating")
    channels: int = _in(64, 1, 4096)
    layers: int = _in(2, 1, 6)
    start: int = _in(0, 0, 10**9)
    ramp: int = _in(0, 0, 10**9)
    penalty: str = _one_of("none", "r1", "lecam")
    penalty_weight: float = _in(0.0, 0.0, 1e6)
    penalty_every: int = _in(1, 1, 10**6)
    augment: tuple[str, ...] = _some_of("color", "translation", "cutout")


@dataclass(frozen=True)
class Stage1Config(StageConfig):
    """Training of the autoencoder; `shift` moves images by up to so many pixels at random.

    `channels_last` is how maps lie in memory, which changes no more than rounding; bfloat16 on a
    CPU goes without. `kl_weight` is read with bottleneck "kl" alone: against the mean squared error
    over C·H·W values, 2σ²/(C·H·W) is the bound of a VAE whose pixels have variance σ².
    """

    betas: tuple[float, float] = _in((0.5, 0.9), 0.0, 0.99999)
    channels_last: bool = True
    commitment_weight: float = _in(0.25, 0.0, 1e6)
    kl_weight: float = _in(1e-6, 0.0, 1e6)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of `rqtoolkit.RQTransformer`; positions, depth and classes follow from the data.

    `text_length` counts the tokens of a text condition, for data with a tokenizer. The last four
    are beyond the paper, see `rqtoolkit.RQTransformer`.
    """

    dim: int = _in(1024, 8, 65_536)
    body_layers: int = _in(24, 1, 1024)
    depth_layers: int = _in(4, 1, 1024)
    num_heads: int = _in(16, 1, 1024)
    dropout: float = _in(0.1, 0.0, 0.9)
    label_dropout: float = _in(0.0, 0.0, 0.9)
    text_length: int | None = _in(None, 1, 65_536)
    rotary: bool = False
    qk_norm: bool = False
    adaln: bool = False
    swiglu: bool = False


@dataclass(frozen=True)
class Stage2Config(StageConfig):
    """Training of the RQ-Transformer.

    `shift` moves images by up to so many pixels and tells the transformer by how much, since small
    sets profit from moved copies only when they are known as such. `tau` is the temperature of soft
    targets and stochastic codes, with `relative_tau` in units of the mean squared codeword norm.
    `unshifted` is the share of images left in place. `cache` keeps the latents of so many augmented
    copies of every image on disk, in place of encoding them at every step; 0 is none.
    """

    learning_rate: float = _in(5e-4, 1e-8, 1.0)
    weight_decay: float = _in(1e-4, 0.0, 1.0)
    schedule: str = _one_of("cosine", "constant")
    clip_norm: float | None = _in(1.0, 1e-6)
    soft_targets: bool = True
    stochastic_codes: bool = True
    tau: float = _in(0.5, 1e-9, 1e6)
    relative_tau: bool = False
    unshifted: float = _in(0.5, 0.0, 1.0)
    cache: int = _in(0, 0, 64)
    text_weight: float = _in(0.1, 0.0, 1.0)


@dataclass(frozen=True)
class SamplingConfig:
    """Defaults of sampling; `top_k` 0, `top_p` 1, `cfg_scale` 1 and `accept` 1 do nothing.

    Temperature and filters are one number for all levels of codes, or a list with one a level.
    `accept` is the share of the images drawn that a classifier keeps (rejection sampling).
    """

    temperature: float | tuple[float, ...] = _in(1.0, 1e-3, 10.0)
    top_k: int | tuple[int, ...] = _in(0, 0, 2**20)
    top_p: float | tuple[float, ...] = _in(1.0, 1e-6, 1.0)
    cfg_scale: float = _in(1.0, 0.0, 100.0)
    accept: float = _in(1.0, 1e-3, 1.0)
    batch_size: int = _in(100, 1, 2**20)


@dataclass(frozen=True)
class Config:
    """Everything a run depends on; a seed and this tree fix its results to the bit.

    `parallel` says how several processes share the transformer: "ddp" copies it, "fsdp" divides it;
    the autoencoder is always copied.
    `init_from` is a run whose models this one starts from. `wandb` names a project.
    """

    name: str = "unnamed"
    seed: int = _in(0, 0, 2**31 - 1)
    device: str = _one_of("auto", "cpu", "cuda", "mps")
    dtype: str = _one_of("float32", "bfloat16")
    parallel: str = _one_of("ddp", "fsdp")
    init_from: str | None = None
    tensorboard: bool = False
    wandb: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
