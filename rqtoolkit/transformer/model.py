"""RQ-Transformer: a body over positions, a depth transformer over the codes of one position."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.arguments import check_count, check_rate, check_sizes
from rqtoolkit.functional.progress import Progress, report
from rqtoolkit.functional.soft_targets import SoftTargets
from rqtoolkit.io.artifact import check_tensors, constructing, read_artifact, write_artifact
from rqtoolkit.transformer.checks import check_generator, check_inputs, check_positions
from rqtoolkit.transformer.classifier import LevelClassifiers, SharedClassifier
from rqtoolkit.transformer.conditioning import ConditionTable
from rqtoolkit.transformer.embedding import CodeEmbedding
from rqtoolkit.transformer.losses import LossTerms, compute_losses
from rqtoolkit.transformer.passes import classify, modulating, run_body, run_depth
from rqtoolkit.transformer.rotary import check_rotary
from rqtoolkit.transformer.sampling import sampling_rules
from rqtoolkit.transformer.stack import Modulation, Stack
from rqtoolkit.transformer.walk import Choose, walk_codes

__all__ = ["RQTransformer"]


class RQTransformer(nn.Module):
    """Autoregressive model of stacks of codes on a grid or a sequence.

    With S_td the sum of the first d codewords at position t, and positions in raster order,

        body input      w_t = W_b S_tD + D b_b + position_t
        context         h_t = body(condition, w_0 … w_{t-1}), its last output
        depth input     v_t0 = h_t + level_0,   v_td = W_d S_td + b_d + level_d
        prediction      p(code_td | all before) = softmax(Linear(LayerNorm(depth(v_t0 … v_td))))

    so that a position costs one step of the large body and D steps of the small depth transformer,
    where a flat sequence would take D steps of the large one.

    Args:
        positions: Grid (H, W) or any tuple of axes, or the longest length of a sequence.
        depth: Codes per position.
        codebook_size: Entries of a level's codebook: one integer, or one per level. Where they
            differ, the logits are as wide as the largest and -inf where a level has no entry.
        dim: Width of both transformers.
        body_layers: Blocks of the body.
        depth_layers: Blocks of the depth transformer.
        num_heads: Attention heads; divides dim.
        codebooks: Codewords as `ResidualQuantizer.codebooks` gives them, shape
            (depth or 1, codebook_size, code_dim). They are frozen, saved with the model, and stay
            float32 whatever the model is cast to. None learns embeddings of width dim.
        num_classes: Classes to condition on.
        label_dropout: Chance of training a sequence without its class or text. Over 0 it adds the
            null condition that guidance (`cfg_scale`) needs. Drawn from torch's default generator,
            as dropout is.
        dropout: Residual dropout.
        text_length: Tokens of a text to condition on. The model then also predicts each next token
            of the text, with a classifier of its own.
        text_vocab: Entries of the text's vocabulary.
        text_weight: Share of the text in the loss.
        classifier_per_level: A last linear map for each level in place of a shared one.
        shared_embeddings: Without codebooks, learn one table for all levels in place of one each.
        partial_sums: Show the depth transformer the sums S_td, as above; False, the last codeword
            alone.
        rotary: Rotary positions in the body, axial on a grid, beside the learned ones
            (`rqtoolkit.transformer.rotary`). This and what follows go beyond the paper.
        qk_norm: Normalised queries and keys (`CausalSelfAttention`).
        adaln: The class, besides coming first, modulates every block (`Modulation`).
        swiglu: SwiGLU perceptrons of about the same size (`GatedLinear`).

    Raises:
        ConfigError: If an argument is out of its range, or two do not go together.
        ShapeError: If codebooks do not fit depth and codebook_size.

    Example:
        >>> model = RQTransformer((8, 8), depth=4, codebook_size=256, dim=64, num_classes=10)
        >>> codes = model.generate(2, cond=torch.tensor([3, 7]), top_k=50)
        >>> codes.shape
        torch.Size([2, 8, 8, 4])

    References:
        Lee, Kim, Kim, Cho & Han, "Autoregressive Image Generation using Residual Quantization",
        CVPR 2022, https://arxiv.org/abs/2203.01941, section 3.2.
        Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022,
        https://arxiv.org/abs/2207.12598.
    """

    def __init__(
        self,
        positions: int | Sequence[int] = (8, 8),
        depth: int = 4,
        codebook_size: int | Sequence[int] = 1024,
        *,
        dim: int = 512,
        body_layers: int = 12,
        depth_layers: int = 4,
        num_heads: int = 8,
        codebooks: Tensor | None = None,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        dropout: float = 0.1,
        text_length: int | None = None,
        text_vocab: int | None = None,
        text_weight: float = 0.1,
        classifier_per_level: bool = False,
        shared_embeddings: bool = False,
        partial_sums: bool = True,
        rotary: bool = False,
        qk_norm: bool = False,
        adaln: bool = False,
        swiglu: bool = False,
    ) -> None:
        # What `save` writes beside the weights; the codebooks are one of them.
        known = locals()
        arguments = {k: known[k] for k in known if k not in {"self", "codebooks", "__class__"}}
        super().__init__()
        where = "RQTransformer"
        for name in ("depth", "dim", "body_layers", "depth_layers", "num_heads", "num_classes"):
            if arguments[name] is not None:
                arguments[name] = check_count(where, name, arguments[name])
        for name in ("dropout", "text_weight"):
            arguments[name] = check_rate(where, name, arguments[name])
        self.positions = check_positions(where, positions)
        self.codebook_sizes = check_sizes(where, codebook_size, depth)
        if dim % num_heads:
            raise ConfigError(
                f"{where}: num_heads={num_heads} must divide dim; got dim={dim}. Change either."
            )
        if adaln and num_classes is None:
            raise ConfigError(
                f"{where}: adaln=True modulates by the class; got num_classes=None. "
                "Pass num_classes, or adaln=False."
            )
        if rotary:
            check_rotary(self.positions, dim // num_heads)
        self.depth, self.dim, self.num_heads = depth, dim, num_heads
        self.num_classes, self.text_length, self.text_vocab = num_classes, text_length, text_vocab
        self.text_weight, self.rotary, self.adaln = text_weight, rotary, adaln
        sizes = {"positions": self.positions, "codebook_size": self.codebook_sizes}
        self._arguments: dict[str, Any] = arguments | sizes

        texts = {"text_length": text_length, "text_vocab": text_vocab}
        self.condition = ConditionTable(dim, num_classes, label_dropout, **texts)
        self.condition_length = self.condition.length
        self.condition_positions = nn.Parameter(torch.empty(self.condition_length, dim))
        tables = {"shared": shared_embeddings, "partial_sums": partial_sums}
        total = math.prod(self.positions)
        self.embedding = CodeEmbedding(total, self.codebook_sizes, dim, codebooks, **tables)
        switches = {"qk_norm": qk_norm, "swiglu": swiglu, "adaln": adaln}
        self.body = Stack(dim, body_layers, num_heads, dropout, **switches)
        self.depth_transformer = Stack(dim, depth_layers, num_heads, dropout, **switches)
        self.classifier_norm = nn.LayerNorm(dim, eps=1e-5)
        make_classifier = LevelClassifiers if classifier_per_level else SharedClassifier
        self.classifier = make_classifier(dim, self.codebook_sizes)
        if text_vocab is not None:
            self.text_classifier_norm = nn.LayerNorm(dim, eps=1e-5)
            self.text_classifier = nn.Linear(dim, text_vocab)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and embeddings from N(0, 0.02²), biases 0, as GPT-2 does."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | LevelClassifiers):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear | LevelClassifiers):
                nn.init.zeros_(module.bias)
        for table in (self.condition_positions, *self.embedding.parameters(recurse=False)):
            nn.init.normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments as `save` writes them: all but the codebooks."""
        return dict(self._arguments)

    @property
    def checkpointing(self) -> bool:
        """Compute the inside of every block again for the backward pass, to save memory."""
        return self.body.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.body.checkpointing = self.depth_transformer.checkpointing = value

    def forward(
        self, codes: Tensor, cond: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict every code from those before it (teacher forcing).

        Args:
            codes: Codes, shape (B, *positions, depth); one-dimensional positions may be fewer.
            cond: Class labels, shape (B,) or (B, 1); text tokens, shape (B, text_length); None for
                an unconditional model.
            lengths: Real positions of each sequence, shape (B,); only for one-dimensional
                positions. Codes after them may hold anything, and their logits mean nothing.

        Returns:
            Logits, shape (B, *positions, depth, K), K the largest codebook size; -inf at entries
            that a smaller level does not have. With text, also the logits of text tokens 1, 2, …,
            shape (B, text_length - 1, text_vocab).

        Raises:
            ShapeError: If a shape does not fit the model.
            DataError: If codes, classes or lengths are no integers or out of range.
            ConfigError: If cond is missing, or given to an unconditional model.
        """
        flat, rows, _ = check_inputs(self, "RQTransformer.forward", codes, cond, lengths)
        rows, _ = self.condition.drop(rows)
        out = run_body(self, flat, rows)
        contexts = out[:, self.condition_length - 1 :].flatten(0, 1)
        hidden = run_depth(self, contexts, flat.flatten(0, 1), modulating(self, rows))
        widest = max(self.codebook_sizes)
        levels = [classify(self, x, level) for level, x in enumerate(hidden.unbind(1))]
        padded = [F.pad(x, (0, widest - x.shape[1]), value=-math.inf) for x in levels]
        logits = torch.stack(padded, 1).view(*codes.shape, widest)
        if self.text_length is None:
            return logits
        texts = self.text_classifier_norm(out[:, : self.condition_length - 1])
        return logits, self.text_classifier(texts)

    def loss_terms(
        self,
        codes: Tensor,
        *,
        cond: Tensor | None = None,
        targets: Tensor | SoftTargets | None = None,
        lengths: Tensor | None = None,
    ) -> LossTerms:
        """Return the mean cross-entropies of codes and text; `.total` is what `loss` gives.

        Logits exist for a chunk of positions at a time, see
        `rqtoolkit.functional.cross_entropy.linear_cross_entropy`.

        Args:
            codes: What the model is fed, as for `forward`.
            cond: Condition, as for `forward`.
            targets: Soft targets: probabilities of shape (B, *positions, depth, K), as
                `ResidualQuantizer.soft_codes` gives them, or what `ResidualQuantizer.soft_targets`
                gives, which takes far less memory. None is the codes themselves.
            lengths: Real positions of each sequence, shape (B,).

        Raises:
            ShapeError: If a shape does not fit the model.
            DataError: If values are out of range.
            ConfigError: If cond is missing, or given to an unconditional model.
        """
        return compute_losses(self, codes, cond, targets, lengths)

    def losses(
        self,
        codes: Tensor,
        *,
        cond: Tensor | None = None,
        targets: Tensor | SoftTargets | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy of each depth level in nats, shape (depth,), without text.

        Arguments as in `loss_terms`; at least float32.
        """
        return self.loss_terms(codes, cond=cond, targets=targets, lengths=lengths).levels

    def loss(
        self,
        codes: Tensor,
        *,
        cond: Tensor | None = None,
        targets: Tensor | SoftTargets | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy per code in nats, a scalar; arguments as in `loss_terms`.

        With text, that of text tokens has a share of text_weight in it.
        """
        return self.loss_terms(codes, cond=cond, targets=targets, lengths=lengths).total

    def generate(
        self,
        num_samples: int,
        *,
        cond: Tensor | None = None,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int | None] | None = None,
        top_p: float | Sequence[float | None] | None = None,
        cfg_scale: float = 1.0,
        prefix: Tensor | None = None,
        length: int | None = None,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample codes, position after position in raster order, coarse to fine in each.

        Dropout is off whatever mode the model is in. Settings marked with a star take one value,
        or one per depth level.

        Args:
            num_samples: Sequences to sample, as one batch.
            cond: Class labels, shape (num_samples,) or (num_samples, 1); text tokens, shape
                (num_samples, text_length).
            temperature: Divides the logits.*
            top_k: Keep the k most likely entries, ties included; None is off.*
            top_p: Of these keep the most likely that together reach p; None is off.*
            cfg_scale: Guidance scale s: logits are uncond + s (cond - uncond). 1 is off; any other
                needs a model with label_dropout > 0 and runs twice the batch.
            prefix: Codes to start from, shape (num_samples, T0, depth) in raster order.
            length: Positions to sample, prefix included, where positions are one-dimensional;
                None is all of them.
            generator: Source of randomness on the model's device; None is torch's default.
            progress: Called as `progress("Sampling", positions done, positions)`.

        Returns:
            Codes, shape (num_samples, *positions, depth), int64.

        Raises:
            ConfigError: If a setting is out of its range, or cond is missing or superfluous.
            ShapeError: If cond or prefix have the wrong shape.
            DataError: If cond or prefix hold values out of range.
        """
        where, total = "RQTransformer.generate", length or math.prod(self.positions)
        check_generator(where, generator, self.embedding.positions.device)
        rules = sampling_rules(self.depth, temperature=temperature, top_k=top_k, top_p=top_p)

        def draw(position: int, level: int, logits: Tensor) -> Tensor:
            if level == 0:
                report(progress, "Sampling", position, total)
            return rules[level].draw(logits, generator=generator)

        codes = walk_codes(self, where, num_samples, draw, cond, cfg_scale, prefix, length)
        report(progress, "Sampling", total, total)
        return codes

    def walk(
        self,
        num_samples: int,
        choose: Choose,
        *,
        cond: Tensor | None = None,
        cfg_scale: float = 1.0,
        prefix: Tensor | None = None,
        length: int | None = None,
    ) -> Tensor:
        """Go through the codes in the order of `generate`, asking `choose` for every one.

        The loop of `generate` without its sampling rule. Two walks of one model on one machine
        (same device, threads, dtype) with equal arguments and choices, in batches of one size, see
        logits equal to the bit; those of `forward` differ by rounding. The encoder and the decoder
        of an entropy coder can therefore share it: the one chooses known codes and notes what they
        cost, the other reads its choices from the stream.

        Args:
            num_samples: Sequences, as one batch of size B.
            choose: Called as `choose(position, level, logits)` with logits (B, K_level), float32,
                in inference mode; returns codes (B,), int64, on the model's device.
            cond: Condition, as for `generate`.
            cfg_scale: Guidance scale, as for `generate`; logits are the guided ones.
            prefix: Codes to start from, shape (B, T0, depth) in raster order; not asked for.
            length: Positions, prefix included, where positions are one-dimensional.

        Returns:
            Codes, shape (B, *positions, depth), int64.

        Raises:
            ConfigError: If a setting is out of its range, or cond is missing or superfluous.
            ShapeError: If cond or prefix have the wrong shape.
            DataError: If cond or prefix hold values out of range.
        """
        where = "RQTransformer.walk"
        return walk_codes(self, where, num_samples, choose, cond, cfg_scale, prefix, length)

    def save(self, path: str | Path) -> None:
        """Write weights, codewords and constructor arguments to one `.safetensors` file."""
        write_artifact(
            path,
            class_name="RQTransformer",
            arguments=self._arguments,
            tensors=self.state_dict(),
        )

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a model written by `save`, with the dtypes it was saved in, in eval mode.

        Raises:
            ArtifactError: If the file is missing, damaged, or holds something else.
        """
        arguments, tensors = read_artifact(path, class_name="RQTransformer", device=device)
        # Weights are about to be replaced: on the meta device none are drawn.
        with constructing(path), torch.device("meta"):
            model = cls(**arguments, codebooks=tensors.get("embedding.codebooks"))
        check_tensors(path, model.state_dict(), tensors)
        # Files do not align tensors as torch does, and products may then round differently.
        aligned = {name: tensors.pop(name).clone() for name in list(tensors)}
        model.load_state_dict(aligned, assign=True)
        return model.eval()
