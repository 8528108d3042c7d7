"""Next-item recommendation: sequences, their evaluation, baselines and generative retrieval."""

from rqtoolkit.semantic_ids.recommend.baselines import (
    Blend,
    ContentNeighbours,
    CoOccurrence,
    Markov,
    Popularity,
)
from rqtoolkit.semantic_ids.recommend.evaluation import Evaluation, evaluate_next_item
from rqtoolkit.semantic_ids.recommend.generative import GenerativeRecommender
from rqtoolkit.semantic_ids.recommend.sasrec import SASRec
from rqtoolkit.semantic_ids.recommend.sequences import Sequences
from rqtoolkit.semantic_ids.recommend.tuning import tune

__all__ = [
    "Blend",
    "CoOccurrence",
    "ContentNeighbours",
    "Evaluation",
    "GenerativeRecommender",
    "Markov",
    "Popularity",
    "SASRec",
    "Sequences",
    "evaluate_next_item",
    "tune",
]
