"""A constraint for `generate` of `transformers`: language models that write only semantic IDs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable
from rqtoolkit.semantic_ids.decoding.vocabulary import import_transformers

__all__ = ["logits_processor", "read_codes"]


def logits_processor(
    table: PrefixTable,
    token_ids: Sequence[NDArray[np.int64]],
    *,
    prompt_length: int | None = None,
    start_token: int | None = None,
    end_token: int | None = None,
) -> Any:
    """Make a `LogitsProcessor` that lets `generate` write only semantic IDs of a table.

    For greedy search, sampling and beam search, any batch, prompts padded on the left, and
    encoder-decoder models. What may come next is looked up for all rows at once. Scores of what may
    come are left alone: beam search ranks by the model's own probabilities. With fewer semantic IDs
    than beams, `generate` repeats some, with scores near -1e9; `beam_search` does not.

    Pass one of `prompt_length` and `start_token`:

    - `prompt_length`: columns of the prompts, padding included, `inputs["input_ids"].shape[1]`; 1
      for encoder-decoder models, which start from one token; 0 with `inputs_embeds`. The semantic
      ID is what follows.
    - `start_token`: the semantic ID follows its last occurrence, in the prompt or generated. Before
      it, and once a semantic ID is complete, the model writes what it likes: several may be
      generated, with text between them.

    Args:
        table: Semantic IDs that may be generated, at least one.
        token_ids: Token numbers of each level, as `extend_tokenizer` returns them.
        prompt_length: See above.
        start_token: See above.
        end_token: The one token that may follow a complete semantic ID, to end the sequence; None
            leaves that free, for `max_new_tokens` or a further processor.

    Raises:
        MissingDependencyError: If transformers is not installed.
        ConfigError: If both or none of prompt_length and start_token are passed, or start_token is
            a token of semantic IDs.
        ShapeError: If token_ids do not fit the table.
        DataError: If the table is empty; when called, if the model's head has too few rows, or a
            prompt begins a semantic ID that does not exist.
    """
    processor: Any = _processor_class()
    return processor(
        _Vocabulary(token_ids, table.codebook_sizes),
        table,
        _Start(prompt_length, start_token, token_ids),
        end_token,
    )


def read_codes(
    sequences: Tensor,
    token_ids: Sequence[NDArray[np.int64]],
    *,
    prompt_length: int | None = None,
    start_token: int | None = None,
) -> Tensor:
    """Return the semantic IDs that `generate` wrote.

    Args:
        sequences: Token numbers, shape (R, T), int64.
        token_ids: Token numbers of each level, as `extend_tokenizer` returns them.
        prompt_length: As for `logits_processor`.
        start_token: As for `logits_processor`.

    Returns:
        Codes, shape (R, length), int64; rows of -1 where no complete semantic ID is.

    Raises:
        ConfigError: As for `logits_processor`.
    """
    vocabulary = _Vocabulary(token_ids, tuple(len(row) for row in token_ids))
    lengths = _Start(prompt_length, start_token, token_ids).lengths(sequences)
    codes = vocabulary.codes(sequences, lengths)
    return codes.masked_fill((codes < 0).any(1, keepdim=True), -1)


class _Start:
    """Where semantic IDs begin in sequences of tokens."""

    def __init__(
        self,
        prompt_length: int | None,
        start_token: int | None,
        token_ids: Sequence[NDArray[np.int64]],
    ) -> None:
        if (prompt_length is None) == (start_token is None):
            raise ConfigError(
                f"logits_processor: prompt_length={prompt_length}, start_token={start_token}: "
                "pass one of them, to say where semantic IDs begin."
            )
        if start_token is not None and any(start_token in row for row in token_ids):
            raise ConfigError(
                f"logits_processor: start_token={start_token} must not be a token of semantic IDs."
            )
        self._prompt_length, self._start_token = prompt_length or 0, start_token

    def lengths(self, sequences: Tensor) -> Tensor:
        """Return how many tokens (R,) follow the start; negative where there is none."""
        rows, total = sequences.shape
        if self._start_token is None:
            return torch.full((rows,), total - self._prompt_length, device=sequences.device)
        starts = torch.eq(sequences, self._start_token).flip(1)
        lengths = (starts.cumsum(1) == 0).sum(1)  # columns right of the last start
        return torch.where(lengths < total, lengths, -1)


class _Vocabulary:
    """Tokens to codes, for each level."""

    def __init__(self, token_ids: Sequence[NDArray[np.int64]], sizes: Sequence[int]) -> None:
        if [len(row) for row in token_ids] != list(sizes):
            raise ShapeError(
                f"logits_processor: token_ids has to hold {tuple(sizes)} tokens, one for each "
                f"code of each level; got {tuple(len(row) for row in token_ids)}."
            )
        self.token_ids = [torch.as_tensor(row, dtype=torch.int64) for row in token_ids]
        self.largest = max(int(row.max()) for row in self.token_ids)
        # One more column stands for all tokens beyond.
        self._codes = torch.full((len(sizes), self.largest + 2), -1)
        for level, row in enumerate(self.token_ids):
            self._codes[level, row] = torch.arange(len(row))

    def to(self, device: torch.device) -> None:
        self.token_ids = [row.to(device) for row in self.token_ids]
        self._codes = self._codes.to(device)

    def codes(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Return the codes (R, length) of the tokens after the start; -1 where there is none."""
        self.to(sequences.device)
        total = sequences.shape[1]
        columns = []
        for level, codes in enumerate(self._codes):
            places = (total - lengths + level).clamp(0, max(total - 1, 0))
            tokens = sequences.gather(1, places[:, None])[:, 0] if total else lengths
            found = codes[tokens.clamp(max=self.largest + 1)]
            columns.append(torch.where(lengths > level, found, -1))
        return torch.stack(columns, 1)


class _Constraint:
    """The work of the processor, for the class that `_processor_class` derives."""

    supports_continuous_batching = False

    def __init__(
        self, vocabulary: _Vocabulary, table: PrefixTable, start: _Start, end_token: int | None
    ) -> None:
        if not len(table):
            raise DataError("logits_processor: table has to hold a semantic ID; got an empty one.")
        self._vocabulary, self._start, self._end_token = vocabulary, start, end_token
        self._table = table.to("cpu") if table.device is None else table

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (R, vocabulary) with -inf for tokens that may not follow."""
        if scores.shape[1] <= self._vocabulary.largest:
            raise DataError(
                f"logits_processor: the model's head has {scores.shape[1]} rows but token_ids go "
                f"up to {self._vocabulary.largest}. Pass the model to extend_tokenizer."
            )
        if self._table.device != input_ids.device:
            self._table = self._table.to(input_ids.device)
        lengths = self._start.lengths(input_ids)
        codes = self._vocabulary.codes(input_ids, lengths)
        result = scores.clone()
        for level, token_ids in enumerate(self._vocabulary.token_ids):
            rows = (lengths == level).nonzero()[:, 0]
            if len(rows):
                states = self._table.find(codes[rows, :level])
                self._check(states, input_ids[rows])
                allowed = self._table.mask(states, level=level)
                kept = torch.full_like(scores[rows], -torch.inf)
                kept[:, token_ids] = scores[rows[:, None], token_ids].masked_fill(
                    ~allowed, -torch.inf
                )
                result[rows] = kept
        if self._end_token is not None:
            rows = (lengths == len(self._vocabulary.token_ids)).nonzero()[:, 0]
            kept = torch.full_like(scores[rows], -torch.inf)
            kept[:, self._end_token] = scores[rows, self._end_token]
            result[rows] = kept
        return result

    def _check(self, states: Tensor, input_ids: Tensor) -> None:
        dead = (states < 0).nonzero()[:, 0]
        if len(dead):
            raise DataError(
                "logits_processor: a sequence begins a semantic ID that does not exist, ending in "
                f"tokens {input_ids[dead[0], -self._table.length :].tolist()}. Check that the "
                "prompt ends before the semantic ID, or in codes of the table."
            )


@cache
def _processor_class() -> type:
    base = import_transformers().LogitsProcessor
    return type("SemanticIDLogitsProcessor", (_Constraint, base), {"__doc__": _Constraint.__doc__})
