"""What comes before the first code: a start token, a class, or the tokens of a text."""

import torch
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.arguments import check_count, check_rate
from rqtoolkit.transformer.checks import check_integers

__all__ = ["ConditionTable"]

_WHERE = "RQTransformer"


class ConditionTable(nn.Embedding):
    """Embeddings of the condition, one row per class or text token.

    An unconditional model has one row, its start token. With label dropout a last row stands for
    "not told": guidance compares with it, and a dropped text is that row in every place, told
    apart by its position embeddings.

    Args:
        dim: Width of the model.
        num_classes: Classes, or None.
        label_dropout: Chance of training a sequence without its condition.
        text_length: Tokens of a text condition, at least 2, or None.
        text_vocab: Entries of the text vocabulary; goes with text_length.

    Attributes:
        length: Body inputs that the condition takes.
        null_row: Row of the dropped condition, None without label dropout.

    Raises:
        ConfigError: If an argument is out of its range, or two do not go together.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        *,
        text_length: int | None = None,
        text_vocab: int | None = None,
    ) -> None:
        if (text_length is None) != (text_vocab is None):
            raise ConfigError(
                f"{_WHERE}: text_length={text_length} and text_vocab={text_vocab} go together. "
                "Pass both, or neither."
            )
        if num_classes is not None and text_length is not None:
            raise ConfigError(
                f"{_WHERE}: num_classes={num_classes} and text_length={text_length} exclude each "
                "other. Choose classes or text; a class can be a token of the text."
            )
        check_rate(_WHERE, "label_dropout", label_dropout)
        if num_classes is None and text_length is None and label_dropout > 0:
            raise ConfigError(
                f"{_WHERE}: label_dropout={label_dropout} needs classes or text; got "
                "num_classes=None. Pass num_classes or text_length, or label_dropout=0."
            )
        rows = 1
        if num_classes is not None:
            rows = check_count(_WHERE, "num_classes", num_classes)
        if text_length is not None:
            rows = check_count(_WHERE, "text_vocab", text_vocab)
            if check_count(_WHERE, "text_length", text_length) < 2:
                raise ConfigError(
                    f"{_WHERE}: text_length={text_length} must be at least 2. "
                    "Pass a single token as a class, with num_classes."
                )
        super().__init__(rows + (label_dropout > 0), dim)
        self.conditional = num_classes is not None or text_length is not None
        self.length = text_length or 1
        self.choices = rows
        self.label_dropout = float(label_dropout)
        self.null_row = rows if label_dropout > 0 else None

    def rows(self, where: str, cond: Tensor | None, batch: int) -> Tensor:
        """Return the rows (batch, length), int64, that a condition names, after checking it.

        Raises:
            ConfigError: If cond is missing, or given to an unconditional model.
            ShapeError: If its shape is not (batch, length); for classes (batch,) does, too.
            DataError: If it holds anything but integers in range.
        """
        if not self.conditional:
            if cond is not None:
                raise ConfigError(
                    f"{where}: cond was given but the model is unconditional (num_classes=None). "
                    "Leave cond out, or build the model with num_classes or text_length."
                )
            return torch.zeros(batch, 1, dtype=torch.int64, device=self.weight.device)
        shape = f"({batch}, {self.length})"
        if self.length == 1:
            shape = f"({batch},) or {shape}"
        if cond is None:
            has, what = f"num_classes={self.choices}", "class labels"
            if self.length > 1:
                has, what = f"text_length={self.length}", "text tokens"
            raise ConfigError(
                f"{where}: cond is missing and the model has {has}. Pass {what} of shape {shape}."
            )
        check_integers(where, "cond", cond)
        if cond.shape != (batch, self.length) and (self.length > 1 or cond.shape != (batch,)):
            raise ShapeError(
                f"{where}: cond must have shape {shape}; got shape {tuple(cond.shape)}."
            )
        cond = cond.long().view(batch, self.length)
        if not torch.compiler.is_compiling() and ((cond < 0) | (cond >= self.choices)).any():
            raise DataError(
                f"{where}: cond must lie in 0 to {self.choices - 1}; "
                f"got {int(cond.min())} to {int(cond.max())}."
            )
        return cond

    def drop(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draw which sequences of a training batch go without their condition.

        Args:
            rows: Shape (B, length).

        Returns:
            Rows with the null row where dropped, and which are dropped, shape (B, 1), bool; None
            in eval mode and without label dropout. Drawn from torch's default generator.
        """
        if not self.training or self.null_row is None:
            return rows, None
        dropped = torch.rand(len(rows), 1, device=rows.device) < self.label_dropout
        return rows.masked_fill(dropped, self.null_row), dropped
