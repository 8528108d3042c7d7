"""Refusals that all files of semantic IDs share."""

import numpy as np
import pytest

from rqtoolkit.errors import ShapeError
from rqtoolkit.semantic_ids.formats import write_grid, write_index_json, write_item_to_sid

NO_IDS, NO_CODES = np.empty(0, np.int64), np.empty((0, 3), np.int64)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_grid(path, NO_CODES),
        lambda path: write_index_json(path, NO_IDS, NO_CODES),
        lambda path: write_item_to_sid(path, NO_IDS, NO_CODES, (4, 4, 4)),
    ],
)
def test_an_empty_catalogue_is_no_table_the_wrong_way_round(write, tmp_path):
    with pytest.raises(ShapeError, match=r"there is no item to write. Add some first."):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
