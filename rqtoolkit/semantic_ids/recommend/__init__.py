"""Next-item recommendation: sequences, their evaluation, baselines and generative retrieval."""

from rqtoolkit.semantic_ids.recommend.evaluation import Evaluation, evaluate_next_item
from rqtoolkit.semantic_ids.recommend.sequences import Sequences

__all__ = ["Evaluation", "Sequences", "evaluate_next_item"]
