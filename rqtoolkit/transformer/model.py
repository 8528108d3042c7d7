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
from rqtoolkit.io.artifact import check_tensors, constructing, read_artifact, write_artifact
from rqtoolkit.transformer.checks import (
    check_codes,
    check_condition,
    check_lengths,
    check_positions,
    check_range,
    check_targets,
)
from rqtoolkit.transformer.embedding import CodeEmbedding
from rqtoolkit.transformer.sampling import sampling_rules
from rqtoolkit.transformer.stack import Stack
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
        num_classes: Classes to condition on; None is an unconditional model.
        label_dropout: Chance of training a sequence without its class. Over 0 it adds the null
            class that guidance (`cfg_scale`) needs. Drawn from torch's default generator, as
            dropout is.
        dropout: Residual dropout.

    Raises:
        ConfigError: If an argument is out of its range.
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
    ) -> None:
        super().__init__()
        where = "RQTransformer"
        self.positions = check_positions(where, positions)
        self.depth = check_count(where, "depth", depth)
        self.codebook_sizes = check_sizes(where, codebook_size, self.depth)
        self.dim = check_count(where, "dim", dim)
        if dim % check_count(where, "num_heads", num_heads):
            raise ConfigError(
                f"{where}: num_heads={num_heads} must divide dim; got dim={dim}. Change either."
            )
        self.num_classes = None
        if num_classes is not None:
            self.num_classes = check_count(where, "num_classes", num_classes)
        self.label_dropout = check_rate(where, "label_dropout", label_dropout)
        if num_classes is None and label_dropout > 0:
            raise ConfigError(
                f"{where}: label_dropout={label_dropout} needs classes; got num_classes=None. "
                "Pass num_classes, or label_dropout=0."
            )
        self._arguments: dict[str, Any] = {
            "positions": self.positions,
            "depth": self.depth,
            "codebook_size": self.codebook_sizes,
            "dim": self.dim,
            "body_layers": check_count(where, "body_layers", body_layers),
            "depth_layers": check_count(where, "depth_layers", depth_layers),
            "num_heads": int(num_heads),
            "num_classes": self.num_classes,
            "label_dropout": self.label_dropout,
            "dropout": check_rate(where, "dropout", dropout),
        }

        rows = self.num_classes or 1  # an unconditional model has one learned start token
        self.null_class = rows if label_dropout > 0 else None
        self.condition_length = 1
        self.condition = nn.Embedding(rows + (label_dropout > 0), dim)
        self.condition_positions = nn.Parameter(torch.empty(self.condition_length, dim))
        num_positions = math.prod(self.positions)
        self.embedding = CodeEmbedding(num_positions, self.codebook_sizes, dim, codebooks)
        self.body = Stack(dim, body_layers, num_heads, dropout)
        self.depth_transformer = Stack(dim, depth_layers, num_heads, dropout)
        self.classifier_norm = nn.LayerNorm(dim, eps=1e-5)
        self.classifier = nn.Linear(dim, max(self.codebook_sizes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and embeddings from N(0, 0.02²), biases 0, as GPT-2 does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for table in (self.condition_positions, *self.embedding.parameters(recurse=False)):
            nn.init.normal_(table, std=0.02)

    def embed_condition(self, rows: Tensor) -> Tensor:
        """Embed rows of the condition table, shape (B, n), as the first n body inputs."""
        return self.condition(rows) + self.condition_positions

    def classify(self, hidden: Tensor, level: int) -> Tensor:
        """Map outputs of the depth transformer at one level, (N, dim), to logits (N, K_level)."""
        size = self.codebook_sizes[level]
        normed = self.classifier_norm(hidden)
        return F.linear(normed, self.classifier.weight[:size], self.classifier.bias[:size])

    def _contexts(self, codes: Tensor, cond: Tensor | None) -> Tensor:
        """Run the body over codes (B, T, depth); the contexts are (B, T, dim)."""
        rows = cond if cond is not None else codes.new_zeros(codes.shape[0], 1)
        if self.training and self.null_class is not None:
            dropped = torch.rand(rows.shape, device=rows.device) < self.label_dropout
            rows = rows.masked_fill(dropped, self.null_class)
        inputs = [self.embed_condition(rows), self.embedding.body_inputs(codes[:, :-1])]
        return self.body(torch.cat(inputs, 1))[:, self.condition_length - 1 :]

    def _level_logits(self, contexts: Tensor, codes: Tensor) -> list[Tensor]:
        """Logits (N, K_d) of each level for contexts (N, dim) and codes (N, depth)."""
        sums = self.embedding.codewords(codes[:, :-1]).cumsum(-2)
        inputs = torch.cat([contexts.unsqueeze(1), self.embedding.depth_inputs(sums)], 1)
        hidden = self.depth_transformer(inputs + self.embedding.levels)
        return [self.classify(h, level) for level, h in enumerate(hidden.unbind(1))]

    def _prepare(
        self, where: str, codes: Tensor, cond: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Check what was passed; return codes (B, T, depth), cond (B, 1) and a mask (B, T)."""
        check_codes(where, codes, positions=self.positions, sizes=self.codebook_sizes)
        batch = codes.shape[0]
        codes = codes.long().flatten(1, -2)
        real = None
        if lengths is not None:
            axes, longest = len(self.positions), codes.shape[1]
            lengths = check_lengths(where, lengths, axes=axes, batch=batch, longest=longest)
            real = torch.arange(longest, device=codes.device) < lengths.unsqueeze(1)
            codes = codes.masked_fill(~real.unsqueeze(-1), 0)
        check_range(where, codes, self.codebook_sizes)
        cond = check_condition(where, cond, num_classes=self.num_classes, batch=batch)
        return codes, cond, real

    def forward(
        self, codes: Tensor, cond: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> Tensor:
        """Predict every code from those before it (teacher forcing).

        Args:
            codes: Codes, shape (B, *positions, depth); one-dimensional positions may be fewer.
            cond: Class labels, shape (B,) or (B, 1); None for an unconditional model.
            lengths: Real positions of each sequence, shape (B,); only for one-dimensional
                positions. Codes after them may hold anything, and their logits mean nothing.

        Returns:
            Logits, shape (B, *positions, depth, K), K the largest codebook size; -inf at entries
            that a smaller level does not have.

        Raises:
            ShapeError: If a shape does not fit the model.
            DataError: If codes, classes or lengths are no integers or out of range.
            ConfigError: If cond is missing, or given to an unconditional model.
        """
        flat, cond, _ = self._prepare("RQTransformer.forward", codes, cond, lengths)
        contexts = self._contexts(flat, cond)
        levels = self._level_logits(contexts.flatten(0, 1), flat.flatten(0, 1))
        widest = max(self.codebook_sizes)
        padded = [F.pad(x, (0, widest - x.shape[1]), value=-math.inf) for x in levels]
        return torch.stack(padded, 1).view(*codes.shape, widest)

    def losses(
        self,
        codes: Tensor,
        *,
        cond: Tensor | None = None,
        targets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy of each depth level over all real positions.

        Args:
            codes: What the model is fed, as for `forward`.
            cond: Class labels, shape (B,) or (B, 1).
            targets: Soft targets, probabilities of shape (B, *positions, depth, K), as
                `ResidualQuantizer.soft_codes` gives them; None is the codes themselves.
            lengths: Real positions of each sequence, shape (B,).

        Returns:
            Cross-entropies in nats per code, shape (depth,), at least float32.

        Raises:
            ShapeError: If a shape does not fit the model.
            DataError: If values are out of range.
            ConfigError: If cond is missing, or given to an unconditional model.
        """
        where = "RQTransformer.loss"
        flat, cond, real = self._prepare(where, codes, cond, lengths)
        if targets is not None:
            check_targets(where, targets, (*codes.shape, max(self.codebook_sizes)))
            targets = targets.flatten(1, -3)
        contexts = self._contexts(flat, cond)
        if real is None:
            contexts, flat = contexts.flatten(0, 1), flat.flatten(0, 1)
            targets = None if targets is None else targets.flatten(0, 1)
        else:
            contexts, flat = contexts[real], flat[real]
            targets = None if targets is None else targets[real]
        losses = []
        for level, logits in enumerate(self._level_logits(contexts, flat)):
            if targets is None:
                target = flat[:, level]
            else:
                target = targets[:, level, : self.codebook_sizes[level]].to(logits.dtype)
            # Half-precision sums over thousands of entries are too coarse for a loss.
            dtype = torch.promote_types(logits.dtype, torch.float32)
            losses.append(F.cross_entropy(logits.to(dtype), target))
        return torch.stack(losses)

    def loss(
        self,
        codes: Tensor,
        *,
        cond: Tensor | None = None,
        targets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy per code in nats, a scalar; arguments as in `losses`."""
        return self.losses(codes, cond=cond, targets=targets, lengths=lengths).mean()

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
            cond: Class labels, shape (num_samples,) or (num_samples, 1).
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
        where = "RQTransformer.generate"
        rules = sampling_rules(self.depth, temperature=temperature, top_k=top_k, top_p=top_p)
        device = self.embedding.positions.device
        if generator is not None and generator.device.type != device.type:
            raise ConfigError(
                f"{where}: generator is on {generator.device} and the model on {device}. "
                f"Make it with torch.Generator({device.type!r})."
            )
        total = math.prod(self.positions) if length is None else length

        def draw(position: int, level: int, logits: Tensor) -> Tensor:
            if level == 0:
                report(progress, "Sampling", position, total)
            return rules[level].draw(logits, generator=generator)

        codes = walk_codes(
            self,
            num_samples,
            draw,
            where=where,
            cond=cond,
            cfg_scale=cfg_scale,
            prefix=prefix,
            length=length,
        )
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

        This is the loop of `generate` without its sampling rule: dropout is off, every position
        runs through the body once, and what was chosen conditions all that follows. Two walks of
        one model on one machine (same device, threads and dtype) whose arguments and choices
        agree, in batches of the same size, see logits equal to the bit. The encoder and the
        decoder of an entropy coder can therefore share it: the one chooses known codes and notes
        what they cost, the other reads its choices from the stream. Teacher-forced logits
        (`forward`) differ from these by rounding.

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
        return walk_codes(
            self,
            num_samples,
            choose,
            where="RQTransformer.walk",
            cond=cond,
            cfg_scale=cfg_scale,
            prefix=prefix,
            length=length,
        )

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
        model.load_state_dict(tensors, assign=True)
        return model.eval()
