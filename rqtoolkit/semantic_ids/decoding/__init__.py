"""Decoding under a constraint: only semantic IDs that exist can be generated."""

from rqtoolkit.semantic_ids.decoding.beam_search import Beams, beam_search
from rqtoolkit.semantic_ids.decoding.hugging_face import logits_processor, read_codes
from rqtoolkit.semantic_ids.decoding.prefix_table import PrefixTable
from rqtoolkit.semantic_ids.decoding.vocabulary import extend_tokenizer

__all__ = [
    "Beams",
    "PrefixTable",
    "beam_search",
    "extend_tokenizer",
    "logits_processor",
    "read_codes",
]
