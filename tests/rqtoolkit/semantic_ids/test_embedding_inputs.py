import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rqtoolkit.errors import DataError
from rqtoolkit.semantic_ids.inputs import open_embeddings

X = np.arange(12, dtype=np.float32).reshape(6, 2)
NAMES = [f"i{row}" for row in range(6)]


def test_parquet_files_bring_their_item_ids(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"other": range(6), "item_id": NAMES, "vector": list(X)}), path)
    vectors, ids = open_embeddings("test", path)
    assert ids.tolist() == NAMES
    np.testing.assert_array_equal(vectors.take(np.arange(6)), X)
    assert open_embeddings("test", path, id_column="other")[1].tolist() == list(range(6))
    assert open_embeddings("test", path, range(10, 16))[1].tolist() == list(range(10, 16))
    pq.write_table(pa.table({"id": NAMES, "vector": list(X)}), path)
    assert open_embeddings("test", path)[1] is None


def test_columns_of_pyarrow_are_vectors_and_tables_are_refused_by_name():
    table = pa.table({"item_id": NAMES, "vector": list(X)})
    for column in (table["vector"], table["vector"].combine_chunks()):
        vectors, ids = open_embeddings("test", column)
        np.testing.assert_array_equal(vectors.take(np.arange(6)), X)
        assert ids is None
    with pytest.raises(DataError, match="a table with columns item_id, vector") as caught:
        open_embeddings("test", table)
    assert "\n" not in str(caught.value)
