"""Honest scores for generated images: every figure beside what real images reach.

Features come from the public Inception network, whose file the user has, or from a classifier
trained on the real training images by a fixed recipe. Scores compare only under one protocol, which
is written beside each.
"""

from imagegen.evaluate.bound import image_bound
from imagegen.evaluate.classifier import Classifier, train_classifier
from imagegen.evaluate.comparison import NEIGHBOURS, EvaluationResult, evaluate_samples
from imagegen.evaluate.distances import score_reconstructions, score_samples
from imagegen.evaluate.extractors import Extractor
from imagegen.evaluate.frechet import frechet_distance, gaussian_distance
from imagegen.evaluate.inception import Inception
from imagegen.evaluate.inception_score import inception_score
from imagegen.evaluate.kernel import kernel_distance
from imagegen.evaluate.neighbours import NeighbourScores, neighbour_scores
from imagegen.evaluate.pixels import psnr, ssim
from imagegen.evaluate.protocol import Protocol, Scores
from imagegen.evaluate.reference import Reference, load_reference, read_suite, save_reference
from imagegen.evaluate.resize import resize_bilinear
from imagegen.evaluate.statistics import FeatureStatistics, gather_statistics

__all__ = [
    "NEIGHBOURS",
    "Classifier",
    "EvaluationResult",
    "Extractor",
    "FeatureStatistics",
    "Inception",
    "NeighbourScores",
    "Protocol",
    "Reference",
    "Scores",
    "evaluate_samples",
    "frechet_distance",
    "gather_statistics",
    "gaussian_distance",
    "image_bound",
    "inception_score",
    "kernel_distance",
    "load_reference",
    "neighbour_scores",
    "psnr",
    "read_suite",
    "resize_bilinear",
    "save_reference",
    "score_reconstructions",
    "score_samples",
    "ssim",
    "train_classifier",
]
