"""RQTransformer over histories of items: contexts that codes and items are predicted from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqtoolkit.functional.cross_entropy import linear_cross_entropy
from rqtoolkit.transformer.model import RQTransformer
from rqtoolkit.transformer.passes import condition_inputs, rotation, run_depth

__all__ = ["SequenceLosses", "SequenceModel"]

_LOGIT_BYTES = 4 * 2**20  # so that logits over all items stay in the cache of one core


class SequenceLosses(NamedTuple):
    """Mean cross-entropies of the next item in nats.

    Attributes:
        codes: Of its codes, summed over levels.
        item: Of the item among all known ones.
    """

    codes: Tensor
    item: Tensor


class SequenceModel(nn.Module):
    """An RQ-Transformer whose positions are the items of a history, with a memory for each item.

    With e_c the learned embedding of code c and m_i the memory of item i, 0 at first,

        item vector     v_i = Σ_d e_{c_id} + m_i
        context         h_t = body(start, v_{i_1} … v_{i_t}), its last output
        codes           p(c_1 … c_D | h_t), by the depth transformer
        item            q(i | h_t) = softmax_i(scale · LayerNorm(h_t) · v_i)

    Codes share what they learn among items alike; memories tell these apart, which three codes
    from content cannot. Only semantic IDs met in training have a memory. Training leaves out each
    memory now and then, so that an item without one, new to the catalogue, is treated as what its
    codes say and no worse.

    Args:
        known_codes: Semantic IDs met in training, shape (M, depth), int64, distinct.
        codebook_sizes: Entries of each level.
        history_length: Items of a history that are read, the last ones.
        dim: Width.
        body_layers: Blocks of the body.
        depth_layers: Blocks of the depth transformer.
        num_heads: Attention heads.
        dropout: Of the inputs, of the branches of all blocks, and of the contexts.
        memory_dropout: Chance of training a batch without the memory of an item.

    References:
        Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (items in and out by
        one table). https://arxiv.org/abs/1808.09781
        Volkovs, Yu & Poutanen, "DropoutNet: Addressing Cold Start in Recommender Systems",
        NeurIPS 2017 (leaving out what new items lack).
        Yang et al., "Unifying Generative and Dense Retrieval for Sequential Recommendation", 2024
        (both scores from one body). https://arxiv.org/abs/2411.18814
    """

    known_codes: Tensor

    def __init__(
        self,
        known_codes: Tensor,
        codebook_sizes: Sequence[int],
        *,
        history_length: int,
        dim: int,
        body_layers: int,
        depth_layers: int,
        num_heads: int,
        dropout: float,
        memory_dropout: float,
    ) -> None:
        super().__init__()
        self.history_length = history_length
        self.dropout, self.memory_dropout = dropout, memory_dropout
        self.transformer = RQTransformer(
            (history_length + 1,),
            len(codebook_sizes),
            codebook_sizes,
            dim=dim,
            body_layers=body_layers,
            depth_layers=depth_layers,
            num_heads=num_heads,
            dropout=dropout,
            classifier_per_level=True,
            rotary=True,
        )
        self.memories = nn.Parameter(torch.zeros(len(known_codes), dim))
        self.norm = nn.LayerNorm(dim)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("known_codes", known_codes)

    def start_from(self, code_vectors: Sequence[Tensor], memories: Tensor) -> None:
        """Start the embeddings of codes and the memories from given vectors.

        Args:
            code_vectors: One table (K, dim) for each level.
            memories: Shape (M, dim).
        """
        tables = self.transformer.embedding.embeddings
        assert tables is not None
        with torch.no_grad():
            for table, vectors in zip(tables, code_vectors, strict=True):
                table[: len(vectors)] = vectors
            self.memories.copy_(memories)

    def item_vectors(self, codes: Tensor, known: Tensor) -> Tensor:
        """Return vectors of items.

        Args:
            codes: Shape (N, depth); -1 for a code that the model has no embedding of, which adds 0.
            known: Row of each in known_codes, shape (N,), int64; -1 for items without memory.

        Returns:
            Shape (N, dim).
        """
        words = self.transformer.embedding.codewords(codes.clamp_min(0))
        words = (words * (codes >= 0).unsqueeze(-1)).sum(-2)
        return words + self.memories[known.clamp_min(0)] * (known >= 0).unsqueeze(-1)

    def training_vectors(self) -> Tensor:
        """Return vectors (M, dim) of all known items; while training, some without memory."""
        words = self.transformer.embedding.codewords(self.known_codes).sum(-2)
        if not self.training or self.memory_dropout == 0:
            return words + self.memories
        kept = torch.rand(len(words), 1, device=words.device) >= self.memory_dropout
        return words + self.memories * kept

    def contexts(self, vectors: Tensor, histories: Tensor) -> Tensor:
        """Run the body once over histories.

        Args:
            vectors: Item vectors, shape (N, dim).
            histories: Rows of vectors, shape (B, T), the oldest first; -1 in padding, at the end.

        Returns:
            Shape (B, T + 1, dim): what is known before the first item, after it, and so on.
        """
        model = self.transformer
        items = F.embedding(histories.clamp_min(0), vectors)
        items = items + model.embedding.positions[: histories.shape[1]]
        rows = torch.zeros(len(histories), 1, dtype=torch.int64, device=histories.device)
        inputs = torch.cat([condition_inputs(model, rows), items], 1)
        inputs = F.dropout(inputs, self.dropout, self.training)
        return model.body(inputs, rotation=rotation(model))

    def item_logits(self, contexts: Tensor, vectors: Tensor) -> Tensor:
        """Return unnormalised log q of items, shape (B, N), for contexts (B, dim)."""
        return F.linear(self.scale * self.norm(contexts), vectors)

    def losses(self, histories: Tensor) -> SequenceLosses:
        """Predict every item of each history from those before it.

        Args:
            histories: Rows of known_codes, shape (B, T), the oldest first; -1 in padding.
        """
        vectors, real = self.training_vectors(), histories >= 0
        contexts = self.contexts(vectors, histories[:, :-1])[real]
        contexts = F.dropout(contexts, self.dropout, self.training)
        targets = histories[real]
        codes = self.known_codes[targets]
        hidden = run_depth(self.transformer, contexts, codes, None)
        tables = [self.transformer.classifier.table(level) for level in range(codes.shape[1])]
        levels = [
            linear_cross_entropy(x, *table, target)
            for x, table, target in zip(hidden.unbind(1), tables, codes.unbind(1), strict=True)
        ]
        queries, bias = self.scale * self.norm(contexts), vectors.new_zeros(len(vectors))
        item = linear_cross_entropy(queries, vectors, bias, targets, max_bytes=_LOGIT_BYTES)
        return SequenceLosses(torch.stack(levels).sum(), item)
