"""Generative retrieval: an RQ-Transformer over histories that predicts the next semantic ID."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rqtoolkit.errors import ArtifactError, ConfigError, DataError
from rqtoolkit.functional.arguments import check_count, check_rate
from rqtoolkit.functional.progress import Progress
from rqtoolkit.io.artifact import check_tensors, constructing, read_artifact, write_artifact
from rqtoolkit.semantic_ids.decoding.beam_search import beam_search
from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable
from rqtoolkit.semantic_ids.ids import SemanticIDs
from rqtoolkit.semantic_ids.recommend.catalogue import Catalogue
from rqtoolkit.semantic_ids.recommend.collaborative import code_means, company_vectors
from rqtoolkit.semantic_ids.recommend.ranking import CodeSteps, leaf_log_probabilities
from rqtoolkit.semantic_ids.recommend.ranks import metrics_of
from rqtoolkit.semantic_ids.recommend.sequence_model import SequenceModel
from rqtoolkit.semantic_ids.recommend.sequences import Sequences, Split
from rqtoolkit.semantic_ids.recommend.training import Epoch, Settings, train

__all__ = ["GenerativeRecommender"]

_CLASS = "GenerativeRecommender"
_FILE = "recommender.safetensors"
_START = 0.05  # spread of the item vectors that training starts from
_USERS = 16  # users whose trees are walked at once: more would leave the processor's cache
_VALIDATION_KS = (10,)
