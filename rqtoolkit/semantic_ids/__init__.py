"""Semantic IDs: every item of a catalogue a short tuple of codes of its own, coarse to fine."""

from rqtoolkit.semantic_ids.decoding import PrefixTable, beam_search
from rqtoolkit.semantic_ids.growth import Delta, Stability
from rqtoolkit.semantic_ids.ids import SemanticIDs
from rqtoolkit.semantic_ids.standardize import Standardization

__all__ = ["Delta", "PrefixTable", "SemanticIDs", "Stability", "Standardization", "beam_search"]
