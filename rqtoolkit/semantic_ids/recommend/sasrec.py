"""SASRec: a causal transformer over a user's items that scores the next one, as one module."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rqtoolkit.errors import ConfigError, ShapeError
from rqtoolkit.functional.arguments import check_count, check_rate
from rqtoolkit.functional.cross_entropy import linear_cross_entropy
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.artifact import check_tensors, constructing, read_artifact, write_artifact
from rqtoolkit.semantic_ids.recommend.sequences import Sequences, Split
from rqtoolkit.transformer.stack import Stack

__all__ = ["SASRec"]

# Logits of a chunk of positions have to stay in the cache of one core between the matrix product,
# the softmax and the products of the gradient: half the time of chunks of 64 MiB.
_LOGIT_BYTES = 4 * 2**20
_USERS = 128  # scored in one pass of the transformer


class SASRec(nn.Module):
    """Self-attentive sequential recommendation, trained with the softmax over all items.

    Items have one embedding, which enters the transformer and scores the output. Positions are
    counted from the end of the history, as with the left padding of the paper. The loss is the
    cross-entropy of the whole catalogue at every position and not the paper's binary one against a
    sampled item: with it SASRec is ahead of most that was reported to beat it.

    Args:
        items: Size of the catalogue.
        dim: Width.
        layers: Transformer blocks.
        num_heads: Attention heads; divides dim.
        max_length: Items of a history that are read, the latest.
        dropout: Rate on embeddings and both branches of a block.

    References:
        Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.
        https://arxiv.org/abs/1808.09781
        Klenitskiy & Vasilev, "Turning Dross Into Gold Loss: is BERT4Rec really better than
        SASRec?", RecSys 2023, on the loss. https://arxiv.org/abs/2309.07602
    """

    def __init__(
        self,
        items: int,
        *,
        dim: int = 128,
        layers: int = 2,
        num_heads: int = 2,
        max_length: int = 50,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value in (
            ("items", items),
            ("dim", dim),
            ("layers", layers),
            ("num_heads", num_heads),
            ("max_length", max_length),
        ):
            check_count("SASRec", name, value)
        if dim % num_heads:
            raise ConfigError(f"SASRec: num_heads={num_heads} must divide dim={dim}.")
        self.arguments: dict[str, Any] = {
            "items": items,
            "dim": dim,
            "layers": layers,
            "num_heads": num_heads,
            "max_length": max_length,
            "dropout": check_rate("SASRec", "dropout", dropout),
        }
        self.max_length = max_length
        self.item_embedding = nn.Embedding(items, dim)
        self.position_embedding = nn.Embedding(max_length, dim)
        self.dropout = nn.Dropout(dropout)
        self.stack = Stack(dim, layers, num_heads, dropout)
        self.norm = nn.LayerNorm(dim)
        for embedding in (self.item_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)
        # What training was like, an entry per epoch; empty before `fit`.
        self.history: list[dict[str, float]] = []

    @classmethod
    def fit(
        cls,
        train: Sequences,
        *,
        validation: Split,
        dim: int = 128,
        layers: int = 2,
        num_heads: int = 2,
        max_length: int = 50,
        dropout: float = 0.5,
        epochs: int = 16,
        patience: int = 5,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        autocast: bool = True,
        checkpoint: str | Path | None = None,
        threads: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> "SASRec":
        """Train to predict every item from those before it; keep the epoch that validated best.

        Args:
            train: Sequences without what is held out.
            validation: Histories and next items.
            dim: Width.
            layers: Transformer blocks.
            num_heads: Attention heads; divides dim.
            max_length: Items of a history that are read, the latest.
            dropout: Rate on embeddings and both branches of a block.
            epochs: Passes over the users, at most; the learning rate falls over all of them.
            patience: Epochs without a better NDCG@10 of the validation after which to stop.
            batch_size: Users a step.
            learning_rate: Of Adam at its highest; it falls along a cosine.
            autocast: Compute the matrix products of training in bfloat16: half the time on
                processors that have instructions for it, slower on others.
            checkpoint: File to write after every epoch; where it is there, training goes on from
                it and ends as if it had never stopped.
            threads: Threads to use; None leaves torch's number.
            seed: Fixes the result for a number of threads.
            progress: Called with the number of epochs done.

        Returns:
            The trained model; `history` tells loss, validation and CPU seconds of each epoch.

        Raises:
            ConfigError: If an argument is out of its range.
            DataError: If no user has two training interactions, or the validation no user.
            ArtifactError: If the checkpoint is unreadable, or of another training.

        Example:
            >>> train, validation, test = sequences.leave_one_out()
            >>> model = SASRec.fit(train, validation=validation, checkpoint="sasrec.safetensors")
            >>> evaluate_next_item(model, sequences).all.recall[10]
        """
        from rqtoolkit.semantic_ids.recommend.sasrec_training import fit

        return fit(
            train,
            validation,
            arguments={
                "items": len(train.item_ids),
                "dim": dim,
                "layers": layers,
                "num_heads": num_heads,
                "max_length": max_length,
                "dropout": dropout,
            },
            settings={
                "epochs": epochs,
                "patience": patience,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "autocast": autocast,
                "seed": seed,
            },
            checkpoint=checkpoint,
            threads=threads,
            progress=progress,
        )

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the state after each item of each history.

        Args:
            items: Rows of items, shape (B, T), oldest first from column 0 on, T at most
                max_length; what stands behind a history's end changes nothing before it.
            lengths: Items of each history, shape (B,).

        Returns:
            Shape (B, T, dim); the next item's logits are its products with the item embeddings.
        """
        places = torch.arange(items.shape[1], device=items.device) + (
            self.max_length - lengths[:, None]
        )
        x = self.item_embedding(items.clamp(min=0)) * math.sqrt(self.item_embedding.embedding_dim)
        x = x + self.position_embedding(places.clamp(max=self.max_length - 1))
        return self.norm(self.stack(self.dropout(x)))

    def loss(self, items: Tensor) -> Tensor:
        """Return the mean cross-entropy of every item but the first of each history.

        Args:
            items: Shape (B, T), −1 behind the end; T at most max_length + 1.

        Returns:
            Scalar, in nats.
        """
        targets = items[:, 1:]
        known = targets >= 0
        states = self(items[:, :-1], known.sum(1))[known]
        weight = self.item_embedding.weight
        return linear_cross_entropy(
            states, weight, weight.new_zeros(len(weight)), targets[known], max_bytes=_LOGIT_BYTES
        )

    @torch.no_grad()
    def scores(self, histories: Sequences) -> NDArray[np.float32]:
        """Return the logits of all items, shape (users, items); an empty history scores all 0.

        Dropout is off meanwhile.

        Raises:
            ShapeError: If the catalogue has another size than the model was made for.
        """
        if len(histories.item_ids) != self.item_embedding.num_embeddings:
            raise ShapeError(
                f"SASRec.scores: histories must be of the {self.item_embedding.num_embeddings} "
                f"items of the model; got {len(histories.item_ids)}. Read them with its item_ids."
            )
        training = self.training
        self.eval()
        weight = self.item_embedding.weight
        lengths = np.minimum(histories.lengths, self.max_length)
        states = weight.new_zeros(len(histories), weight.shape[1])
        # Shortest first, so that few share their batch with a much longer one.
        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > 0]
        for rows in (order[i : i + _USERS] for i in range(0, len(order), _USERS)):
            items = torch.from_numpy(histories.take(rows).padded(int(lengths[rows].max())))
            ends = torch.from_numpy(lengths[rows]).to(weight.device)
            found = self(items.to(weight.device), ends)[torch.arange(len(rows)), ends - 1]
            states[torch.from_numpy(rows)] = found.to(states.dtype)
        self.train(training)
        return (states @ weight.T).float().cpu().numpy()

    def save(self, path: str | Path) -> None:
        """Write the model to one `.safetensors` file, atomically.

        Args:
            path: File to write; an existing one is replaced.

        Raises:
            ArtifactError: If the folder is missing.
        """
        write_artifact(
            path,
            class_name="SASRec",
            arguments=self.arguments | {"history": self.history},
            tensors=self.state_dict(),
        )

    @classmethod
    def load(cls, path: str | Path) -> "SASRec":
        """Read what `save` wrote.

        Args:
            path: File to read.

        Raises:
            ArtifactError: If the file is missing, unreadable, or not of this class.
        """
        arguments, tensors = read_artifact(path, class_name="SASRec")
        history = arguments.pop("history", [])
        with constructing(path):
            model = cls(**arguments)
        check_tensors(path, model.state_dict(), tensors)
        model.load_state_dict(tensors)
        model.history = history
        return model.eval()
