"""Generative retrieval: an RQ-Transformer over histories that predicts the next semantic ID."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rqtoolkit.errors import ArtifactError, ConfigError, DataError
from rqtoolkit.functional.arguments import check_count, check_number, check_rate
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.artifact import check_tensors, constructing, read_artifact, write_artifact
from rqtoolkit.semantic_ids.ids import SemanticIDs
from rqtoolkit.semantic_ids.recommend.catalogue import (
    Catalogue,
    check_unmoved,
    codes_of,
    fingerprints,
    known_items,
)
from rqtoolkit.semantic_ids.recommend.collaborative import start_vectors
from rqtoolkit.semantic_ids.recommend.lists import best_items, chosen_items, split_users
from rqtoolkit.semantic_ids.recommend.ranking import leaf_log_probabilities, search_codes
from rqtoolkit.semantic_ids.recommend.ranks import ranks_in_scores
from rqtoolkit.semantic_ids.recommend.sequence_model import SequenceModel
from rqtoolkit.semantic_ids.recommend.sequences import Sequences, Split
from rqtoolkit.semantic_ids.recommend.training import Epoch, Settings, train

__all__ = ["GenerativeRecommender"]

_CLASS = "GenerativeRecommender"
_FILE, _MET = "recommender.safetensors", "met_items"
_USERS = 64  # taken through the body at once
_BEAMS = 50


class GenerativeRecommender:
    """Recommend the next item by generating its semantic ID with an RQ-Transformer.

    Items are the positions of the transformer, their codes its depth. One pass of the body over
    a history gives a context; the depth transformer turns it into probabilities of codes, level by
    level, over the prefixes that exist. Beside the codes, an item met in training has a memory of
    its own, and its score is

        log q(item | context) + codes_share · log p(codes | context)

    with q and p of `SequenceModel`. Items added to the semantic IDs after training have codes, no
    memory, and can be recommended at once; for them log q + new_item_boost stands in for both
    terms, since their codes are none that training has ever seen to follow. A counter that has
    grown past the model's adds nothing: such items are known by their other codes.

    Args:
        ids: Semantic IDs of the catalogue; they may grow later.
        history_length: Items of a history that are read, the last ones.
        dim: Width of body and depth transformer.
        body_layers: Blocks of the body.
        depth_layers: Blocks of the depth transformer.
        num_heads: Attention heads; divides dim.
        dropout: While training.
        memory_dropout: Chance of training without the memory of an item. It decides how far items
            that nobody has met yet come forward.
        codes_share: Weight of the codes in the score of an item.
        new_item_boost: Nats added to log q of items not met in training: more brings them forward
            at the expense of the others. `tune` finds both weights where validation supports them.
        autocast: Compute the products of training and of the prefix tree in bfloat16. On
            processors without instructions for it, False is faster.

    Attributes:
        ids: As passed.
        model: The `SequenceModel`; None before `fit`.

    Raises:
        ConfigError: If an argument is out of its range.

    Example:
        >>> train, validation, test = sequences.leave_one_out()
        >>> recommender = GenerativeRecommender(ids)
        >>> recommender.fit(train, validation=validation, checkpoint="training.safetensors")
        >>> tune(recommender, validation)
        >>> recommender.recommend(test.histories, k=10).shape
        (22363, 10)

    References:
        Rajput et al., "Recommender Systems with Generative Retrieval", NeurIPS 2023.
        https://arxiv.org/abs/2305.05065
        Lee et al., "Autoregressive Image Generation using Residual Quantization", CVPR 2022.
        https://arxiv.org/abs/2203.01941
    """

    def __init__(
        self,
        ids: SemanticIDs,
        *,
        history_length: int = 50,
        dim: int = 128,
        body_layers: int = 2,
        depth_layers: int = 1,
        num_heads: int = 2,
        dropout: float = 0.3,
        memory_dropout: float = 0.1,
        codes_share: float = 0.1,
        new_item_boost: float = 0.0,
        autocast: bool = True,
    ) -> None:
        counts = {
            "history_length": history_length,
            "dim": dim,
            "body_layers": body_layers,
            "depth_layers": depth_layers,
            "num_heads": num_heads,
        }
        for name, value in counts.items():
            check_count(_CLASS, name, value)
        for name, rate in (("dropout", dropout), ("memory_dropout", memory_dropout)):
            check_rate(_CLASS, name, rate)
        self.ids = ids
        self.codes_share = check_number(_CLASS, "codes_share", codes_share, least=0)
        self.new_item_boost = check_number(_CLASS, "new_item_boost", new_item_boost)
        self.autocast = autocast
        self.model: SequenceModel | None = None
        self._shape: dict[str, Any] = counts | {
            "dropout": dropout,
            "memory_dropout": memory_dropout,
        }
        self._catalogue: Catalogue | None = None
        self._met = np.empty(0, np.int64)  # fingerprints of the items met in training

    def fit(
        self,
        sequences: Sequences,
        *,
        validation: Split | None = None,
        epochs: int = 10,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        codes_weight: float = 1.0,
        averaging: float = 0.99,
        patience: int = 3,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[Epoch]:
        """Learn from sequences to predict every item from those before it.

        Item vectors start from which items keep company in the sequences (`company_vectors`): the
        embeddings of codes from what codes explain of that, memories from the rest.

        Args:
            sequences: Of users, without what is held out.
            validation: Histories and next items; the weights kept are those of the epoch with the
                best NDCG@10 of log q, which takes a hundredth of the time of the whole score.
            epochs: Passes over the sequences, at most.
            batch_size: Users a step.
            learning_rate: Of AdamW at its highest.
            weight_decay: Of its matrices.
            codes_weight: Weight of the loss of the codes.
            averaging: Decay of the moving average of weights.
            patience: Epochs without a better validation to wait for one.
            checkpoint: File written after each epoch. If it is there at the start, training goes
                on from it, to the same result; remove it to start anew.
            device: Where to train, and to work later.
            seed: Fixes the result.
            progress: Told of the batches of each epoch.

        Returns:
            Losses and validation of each epoch.

        Raises:
            ConfigError: If a number is out of its range.
            DataError: If there are no two items with interactions, an item without semantic ID, or
                no user to validate on.
            ArtifactError: If the checkpoint is damaged or of another training.
        """
        where = f"{_CLASS}.fit"
        settings = Settings(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            codes_weight=codes_weight,
            averaging=averaging,
            patience=patience,
            autocast=self.autocast,
            seed=seed,
        )
        if validation is not None and not len(validation.targets):
            raise DataError(f"{where}: validation has no user. Pass some, or None.")
        codes = codes_of(where, self.ids, sequences.item_ids)
        met = np.flatnonzero(sequences.counts)
        known, known_codes = known_items(where, codes, met)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            table = torch.from_numpy(known_codes)
            self.model = SequenceModel(table, self.ids.codebook_sizes, **self._shape)
        self._met = fingerprints(sequences.item_ids[met], codes[met])
        tables, memories = start_vectors(
            sequences, known, known_codes, self.ids.codebook_sizes, self.model.transformer.dim
        )
        self.model.start_from([torch.from_numpy(t) for t in tables], torch.from_numpy(memories))
        self.model.to(device)
        histories = sequences.take(sequences.lengths > 0).padded(self.model.history_length)
        histories = np.where(histories >= 0, known[np.maximum(histories, 0)], -1)
        self._catalogue = None
        return train(
            self.model,
            histories,
            settings,
            validate=None if validation is None else lambda: self._validate(validation),
            checkpoint=checkpoint,
            progress=progress,
        )

    @torch.inference_mode()
    def scores(self, histories: Sequences) -> NDArray[np.float32]:
        """Score every item for every user, exactly: some ten times the work of `recommend`.

        Args:
            histories: What users did; its item_ids are what the columns stand for.

        Returns:
            Shape (users, items), float32, higher is better.

        Raises:
            ConfigError: If the recommender is not fitted.
            DataError: If an item has no semantic ID.
        """
        model, catalogue = self._ready(f"{_CLASS}.scores", histories.item_ids)
        scores = np.empty((len(histories), len(histories.item_ids)), np.float32)
        for rows, part in split_users(histories, _USERS):
            contexts, log_q = self._contexts_and_log_q(model, part, catalogue)
            if self.codes_share:
                with self._autocast(contexts):
                    codes = leaf_log_probabilities(model.transformer, contexts, catalogue.tree)
                log_q = self._with_codes(log_q, self.codes_share * codes, catalogue)
            scores[rows] = log_q.cpu().numpy()
        return scores

    @torch.inference_mode()
    def recommend(
        self,
        histories: Sequences,
        k: int,
        *,
        items: ArrayLike | None = None,
        mask_seen: bool = True,
        beams: int | None = None,
    ) -> NDArray[np.int64]:
        """List the best items for every user, by a beam search over their semantic IDs.

        A prefix is kept by the most that an item below it can score: log q of the best of them
        plus codes_share · log p of the prefix. Lists differ from those of `scores` only where more
        than `beams` prefixes promise what they do not hold.

        Args:
            histories: What users did.
            k: Items a user.
            items: Ids of the items to choose from, such as those in stock; None is all.
            mask_seen: Leave out what is in the user's history.
            beams: Prefixes kept at each level, at least k; None takes 50, or 2k if that is more.

        Returns:
            Rows of `histories.item_ids`, shape (users, k), int64, best first; -1 where there are
            no more.

        Raises:
            ConfigError: If the recommender is not fitted, or beams is under k.
            DataError: If an item has no semantic ID, or one of items is not in the catalogue.
        """
        where = f"{_CLASS}.recommend"
        check_count(where, "k", k)
        beams = max(_BEAMS, 2 * k) if beams is None else check_count(where, "beams", beams)
        if beams < k:
            raise ConfigError(f"{where}: beams={beams} must be at least k={k}.")
        item_ids = histories.item_ids
        model, catalogue = self._ready(where, item_ids)
        left_out = ~chosen_items(where, item_ids if items is None else items, item_ids)
        lists = np.empty((len(histories), k), np.int64)
        for rows, part in split_users(histories, _USERS):
            contexts, log_q = self._contexts_and_log_q(model, part, catalogue)
            log_q[:, left_out] = -torch.inf
            if mask_seen:
                users = np.repeat(np.arange(len(part)), part.lengths)
                log_q[users, part.items] = -torch.inf
            if self.codes_share:
                with self._autocast(contexts):
                    best, share = catalogue.at_leaves(log_q), self.codes_share
                    codes = search_codes(
                        model.transformer, contexts, catalogue.table, best, share=share, beams=beams
                    )
                log_q = self._with_codes(log_q, codes, catalogue)
            lists[rows] = best_items(log_q.cpu().numpy(), k)
        return lists

    def new_items(self, item_ids: NDArray) -> NDArray[np.bool_]:
        """Return which of item_ids (N,) training has not met, shape (N,)."""
        return self._ready(f"{_CLASS}.new_items", item_ids)[1].new.cpu().numpy()

    def save(self, folder: str | Path) -> None:
        """Write a folder of semantic IDs (`SemanticIDs.save`) with `recommender.safetensors` in it.

        Raises:
            ConfigError: If the recommender is not fitted.
            ArtifactError: If the folder holds something else, or cannot be written; or if `ids`
                were replaced by some in which items have moved.
        """
        model = self._fitted(f"{_CLASS}.save")
        check_unmoved(f"{_CLASS}.save: the recommender", self.ids, self._met)
        self.ids.save(folder)
        arguments = self._shape | {
            "codes_share": self.codes_share,
            "new_item_boost": self.new_item_boost,
            "autocast": self.autocast,
            "codebook_sizes": model.transformer.codebook_sizes,
        }
        tensors = model.state_dict() | {_MET: torch.from_numpy(self._met)}
        write_artifact(
            Path(folder) / _FILE, class_name=_CLASS, arguments=arguments, tensors=tensors
        )

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> Self:
        """Read a folder that `save` wrote.

        Raises:
            ArtifactError: If a file is missing or damaged, or the two do not belong together.
        """
        path = Path(folder) / _FILE
        ids = SemanticIDs.load(folder)
        if not path.exists():
            raise ArtifactError(
                f"{_CLASS}.load: {folder} has semantic IDs, but no {_FILE}. Train a recommender."
            )
        arguments, tensors = read_artifact(path, class_name=_CLASS, device=device)
        sizes, nothing = arguments.pop("codebook_sizes", None), torch.empty(0)
        with constructing(path):
            recommender = cls(ids, **arguments)
            model = SequenceModel(tensors.get("known_codes", nothing), sizes, **recommender._shape)
        check_tensors(path, model.state_dict() | {_MET: tensors.get(_MET, nothing)}, tensors)
        recommender._met = tensors.pop(_MET).cpu().numpy()
        check_unmoved(f"{_CLASS}.load: {path}", ids, recommender._met)
        model.load_state_dict(tensors)
        recommender.model = model.to(device).eval()
        return recommender

    def _fitted(self, where: str) -> SequenceModel:
        if self.model is None:
            raise ConfigError(f"{where}: the recommender is not fitted. Call fit, or load one.")
        return self.model

    def _ready(self, where: str, item_ids: NDArray) -> tuple[SequenceModel, Catalogue]:
        """Return the model and the catalogue of these items, made anew where it has changed."""
        model = self._fitted(where)
        if self._catalogue is None or not self._catalogue.fits(self.ids, item_ids):
            sizes = model.transformer.codebook_sizes
            self._catalogue = Catalogue.of(where, self.ids, item_ids, model.known_codes, sizes)
        return model, self._catalogue

    def _contexts_and_log_q(
        self, model: SequenceModel, histories: Sequences, catalogue: Catalogue
    ) -> tuple[Tensor, Tensor]:
        """Run the body: contexts (B, dim), and log q (B, N) with the boost of new items."""
        contexts, logits = self._item_logits(model, histories, catalogue)
        return contexts, logits.log_softmax(-1) + self.new_item_boost * catalogue.new

    def _with_codes(self, log_q: Tensor, codes: Tensor, catalogue: Catalogue) -> Tensor:
        """Add codes_share · log p of the leaves (B, leaves) to log q; new items have none."""
        added = torch.where(catalogue.new, self.codes_share * log_q, codes[:, catalogue.leaves])
        return log_q + added

    def _autocast(self, contexts: Tensor) -> torch.autocast:
        return torch.autocast(contexts.device.type, torch.bfloat16, enabled=self.autocast)

    def _item_logits(
        self, model: SequenceModel, histories: Sequences, catalogue: Catalogue
    ) -> tuple[Tensor, Tensor]:
        """Run the body: contexts (B, dim), and unnormalised log q (B, N)."""
        vectors = model.item_vectors(catalogue.codes, catalogue.known)
        padded = histories.padded(model.history_length)
        lengths = torch.from_numpy((padded >= 0).sum(1)).to(vectors.device)
        rows = torch.from_numpy(padded[:, : max(1, int(lengths.max()))]).to(vectors.device)
        users = torch.arange(len(rows), device=vectors.device)
        contexts = model.contexts(vectors, rows)[users, lengths]
        return contexts, model.item_logits(contexts, vectors)

    @torch.inference_mode()
    def _validate(self, split: Split) -> float:
        """NDCG@10 of log q."""
        model, catalogue = self._ready(f"{_CLASS}.fit", split.histories.item_ids)
        gains = []
        for rows, part in split_users(split.histories, _USERS):
            _, logits = self._item_logits(model, part, catalogue)
            ranks = ranks_in_scores(logits.cpu().numpy(), split.targets[rows], part)
            gains.append(ranks.gains(10))
        return float(np.concatenate(gains).mean())
