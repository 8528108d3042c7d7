"""Honest scores for generated images: every figure beside what real images reach.

No downloaded network: features come from a classifier trained on the real training images by a
fixed recipe. Scores are comparable only for the same extractor weights, number of images and
resolution, and never with an Inception FID.
"""

from imagegen.evaluate.bound import image_bound
from imagegen.evaluate.classifier import Classifier, train_classifier
from imagegen.evaluate.frechet import frechet_distance
from imagegen.evaluate.neighbours import NeighbourScores, neighbour_scores
from imagegen.evaluate.protocol import NEIGHBOURS, EvaluationResult, evaluate_samples

__all__ = [
    "NEIGHBOURS",
    "Classifier",
    "EvaluationResult",
    "NeighbourScores",
    "evaluate_samples",
    "frechet_distance",
    "image_bound",
    "neighbour_scores",
    "train_classifier",
]
