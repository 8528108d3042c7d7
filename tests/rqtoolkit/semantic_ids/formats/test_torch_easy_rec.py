import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rqtoolkit.errors import ArtifactError, DataError, ShapeError
from rqtoolkit.semantic_ids.formats import read_item_to_sid, write_item_to_sid

CODES = np.array([[1, 2, 3], [0, 0, 0], [1, 2, 3], [63, 63, 9]])
IDS = ["a", "b", "c", "d"]


def table(**changes):
    columns = {
        "item_id": IDS,
        "origin_codebook": [[1, 2, 9], [0, 0, 0], [1, 2, 3], [63, 63, 9]],
        "codebook": CODES.tolist(),
        "offset_codebook": (CODES + np.array([0, 64, 128])).tolist(),
        "index": [2, 1, 1, 1],
    }
    columns |= changes
    return pa.table({name: values for name, values in columns.items() if values is not None})


def published(folder, value, sizes=None):
    """A generation as TorchEasyRec lays it out."""
    target = folder / "v1" / "item_to_sid"
    target.mkdir(parents=True)
    half = value.num_rows // 2
    pq.write_table(value.slice(0, half), target / "part-0.parquet")
    pq.write_table(value.slice(half), target / "part-1.parquet")
    if sizes:
        (folder / "v1" / "manifest.json").write_text(json.dumps({"codebook": sizes}))
    return target


def test_a_published_generation(tmp_path):
    found = read_item_to_sid(published(tmp_path, table(), [64, 64, 64]))
    assert found.item_ids.tolist() == IDS
    assert (found.codes == CODES).all()
    assert found.codebook_sizes == (64, 64, 64)


def test_offsets_tell_all_sizes_but_the_last(tmp_path):
    found = read_item_to_sid(published(tmp_path, table()))
    assert found.codebook_sizes == (64, 64, 10)
    path = tmp_path / "v1" / "item_to_sid" / "part-0.parquet"
    assert read_item_to_sid(path, codebook_sizes=[64, 64, 32]).codebook_sizes == (64, 64, 32)


def test_slots_become_a_counter_from_zero(tmp_path):
    found = read_item_to_sid(published(tmp_path, table(), [64, 64, 64]), counter=True)
    assert found.counter
    assert found.codes[:, 3].tolist() == [1, 0, 0, 0]
    assert found.codebook_sizes == (64, 64, 64, 2)
    path = tmp_path / "ids.parquet"
    write_item_to_sid(path, found.item_ids, found.codes, found.codebook_sizes, counter=True)
    again = pq.read_table(path)
    assert again.drop_columns("origin_codebook").equals(table().drop_columns("origin_codebook"))


@pytest.mark.parametrize("ids", [[5, 3, 2**40, 1], IDS])
def test_round_trip(tmp_path, ids):
    path = tmp_path / "part-0.parquet"
    write_item_to_sid(path, ids, CODES, [64, 100, 10])
    found = read_item_to_sid(tmp_path)
    assert found.item_ids.tolist() == ids
    assert (found.codes == CODES).all()
    assert found.codebook_sizes == (64, 100, 10)
    written = pq.read_table(path)
    assert written.column("offset_codebook")[0].as_py() == [1, 66, 167]
    assert written.column("index").to_pylist() == [1, 1, 2, 1]
    assert written.column("origin_codebook").equals(written.column("codebook"))


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"codebook": None}, {}, ArtifactError, "columns item_id and codebook"),
        ({"index": None}, {"counter": True}, ArtifactError, "'index'"),
        ({"index": [1, 0, 0, 0]}, {"counter": True}, DataError, "from 1; got 0"),
        ({"index": [1, 1, 1, 1]}, {"counter": True}, DataError, "from 1"),
        ({"codebook": (CODES + np.array([0, 64, 128])).tolist()}, {}, DataError, "are equal"),
        ({"offset_codebook": (CODES + np.array([0, 5, 128])).tolist()}, {}, DataError, "below 5"),
        (
            {"offset_codebook": (CODES + np.array([1, 65, 129])).tolist()},
            {},
            DataError,
            "it is not",
        ),
        ({"offset_codebook": (2 * CODES).tolist()}, {}, DataError, "it is not"),
        ({}, {"codebook_sizes": [128, 64, 64]}, DataError, "offsets tell"),
        ({"codebook": [[1], [1, 2], [1], [2]]}, {}, ShapeError, "one length"),
        ({"codebook": [1, 2, 3, 4]}, {}, DataError, "lists of integers"),
        ({"item_id": ["a", "a", "b", "c"]}, {}, DataError, "distinct"),
        ({"offset_codebook": None}, {"codebook_sizes": [64, 64, 8]}, DataError, "below 8"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(tmp_path, changes, options, error, message):
    pq.write_table(table(**changes), tmp_path / "x.parquet")
    with pytest.raises(error, match=message):
        read_item_to_sid(tmp_path / "x.parquet", **options)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="part-"):
        read_item_to_sid(tmp_path)
    with pytest.raises(ArtifactError, match="not there"):
        read_item_to_sid(tmp_path / "none.parquet")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(ArtifactError, match="not a readable"):
        read_item_to_sid(tmp_path / "x.parquet")


def test_codes_beyond_their_sizes_are_not_written(tmp_path):
    with pytest.raises(DataError, match="below 9"):
        write_item_to_sid(tmp_path / "x.parquet", IDS, CODES, [64, 64, 9])
    with pytest.raises(ShapeError, match="counter alone"):
        write_item_to_sid(tmp_path / "x.parquet", IDS, CODES[:, :1], [64], counter=True)
