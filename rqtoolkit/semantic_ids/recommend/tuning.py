"""How much codes and new items should count in a recommender's scores, decided on validation."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.progress import Progress
from rqtoolkit.semantic_ids.recommend.evaluation import target_ranks
from rqtoolkit.semantic_ids.recommend.generative import GenerativeRecommender
from rqtoolkit.semantic_ids.recommend.sequences import Split

__all__ = ["tune"]

_K = 10


def tune(
    recommender: GenerativeRecommender,
    validation: Split,
    *,
    boosts: Sequence[float] = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
    cost: float = 0.01,
    shares: Sequence[float] = (0.0, 0.05, 0.1, 0.15, 0.25),
    users: int = 4000,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Set `new_item_boost` and `codes_share` of a fitted recommender to what validation supports.

    The boost comes first: the largest that costs no more than a share of the NDCG@10 of all users,
    as log q alone gives it. What new items gain makes up for what the others lose, so that it
    holds while as many users turn to new items as in the validation, and for about as many of them
    as the catalogue has now: when many more have come, tune again. The share of the codes is then
    the one with the best NDCG@10; whether codes add to the items' scores or take from them differs
    from training to training.

    Args:
        recommender: Fitted.
        validation: Histories and next items.
        boosts: Values of new_item_boost to try, in nats. Where no target of the validation is an
            item new to training there is nothing to measure, and it stays as it is.
        cost: Share of NDCG@10, in comparison with the smallest boost, that may be lost.
        shares: Values of codes_share to try; of equal ones the smallest is taken.
        users: Users to try shares on, drawn at random; boosts are tried on all.
        seed: Fixes the draw.
        progress: Told of the users of each trial.

    Raises:
        ConfigError: If there is no boost, no share or no user to try, or the recommender is not
            fitted.
    """
    if not boosts or not shares or users < 1 or not len(validation.targets):
        raise ConfigError(
            f"tune: boosts={tuple(boosts)}, shares={tuple(shares)}, users={users} and the targets "
            f"of the validation must be one or more each; got {len(validation.targets)} targets."
        )
    drawn = np.random.default_rng(seed).permutation(len(validation.targets))[:users]
    part = Split(validation.histories.take(drawn), validation.targets[drawn])

    def ndcg(split: Split, by: Literal["scores", "recommend"]) -> float:
        ranks = target_ranks(recommender, split, k=_K, by=by, progress=progress)
        return float(ranks.gains(_K).mean())

    if recommender.new_items(validation.histories.item_ids)[validation.targets].any():
        recommender.codes_share = 0.0
        chosen, *others = sorted(boosts)
        recommender.new_item_boost = float(chosen)
        least = (1 - cost) * ndcg(validation, "scores") if others else 0.0
        for boost in others:
            recommender.new_item_boost = float(boost)
            if ndcg(validation, "scores") < least:
                break
            chosen = boost
        recommender.new_item_boost = float(chosen)
    gains = {}
    for share in sorted(shares) if len(shares) > 1 else ():
        recommender.codes_share = float(share)
        gains[share] = ndcg(part, "recommend")
    recommender.codes_share = float(max(gains, key=lambda share: gains[share], default=shares[0]))
