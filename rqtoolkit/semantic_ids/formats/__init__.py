"""Semantic IDs in the files of other tools.

Codes come and go as they are, so that what a recommender was trained on stays valid, and a round
trip is exact. `SemanticIDs.from_codes` makes an object of what is read.
"""

from rqtoolkit.semantic_ids.formats.grid import read_grid, write_grid
from rqtoolkit.semantic_ids.formats.index_json import read_index_json, write_index_json
from rqtoolkit.semantic_ids.formats.item_codes import ItemCodes
from rqtoolkit.semantic_ids.formats.torch_easy_rec import read_item_to_sid, write_item_to_sid

__all__ = [
    "ItemCodes",
    "read_grid",
    "read_index_json",
    "read_item_to_sid",
    "write_grid",
    "write_index_json",
    "write_item_to_sid",
]
