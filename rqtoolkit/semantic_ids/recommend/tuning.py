"""How much the codes should count, decided on validation."""

from collections.abc import Sequence

import numpy as np

from rqtoolkit.errors import ConfigError
from rqtoolkit.semantic_ids.recommend.evaluation import target_ranks
from rqtoolkit.semantic_ids.recommend.generative import GenerativeRecommender
from rqtoolkit.semantic_ids.recommend.sequences import Split

__all__ = ["choose_codes_share"]


def choose_codes_share(
    recommender: GenerativeRecommender,
    validation: Split,
    *,
    shares: Sequence[float] = (0.0, 0.05, 0.1, 0.15, 0.25),
    users: int = 1000,
    seed: int = 0,
) -> float:
    """Set `codes_share` of a fitted recommender to what gives the best NDCG@10.

    Whether the codes add to the items' scores or take from them differs from training to training:
    it is to be measured.

    Args:
        recommender: Fitted.
        validation: Histories and next items.
        shares: Values to try.
        users: Users to try them on, drawn at random.
        seed: Fixes the draw.

    Returns:
        The share chosen, the smallest of equal ones.

    Raises:
        ConfigError: If there is no share or no user to try.
    """
    if not shares or users < 1 or not len(validation.targets):
        raise ConfigError(
            f"choose_codes_share: got shares={tuple(shares)}, users={users} and "
            f"{len(validation.targets)} targets. Pass one of each or more."
        )
    drawn = np.random.default_rng(seed).permutation(len(validation.targets))[:users]
    part = Split(validation.histories.take(drawn), validation.targets[drawn])
    gains = {}
    for share in sorted(shares):
        recommender.codes_share = float(share)
        gains[share] = target_ranks(recommender, part, k=10).gains(10).mean()
    recommender.codes_share = float(max(gains, key=lambda share: gains[share]))
    return recommender.codes_share
