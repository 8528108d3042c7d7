import json

import numpy as np
import pytest

from rqtoolkit.errors import ArtifactError, DataError, ShapeError
from rqtoolkit.semantic_ids.formats import read_index_json, write_index_json

LETTER = {"0": ["<a_183>", "<b_70>", "<c_232>"], "1": ["<a_52>", "<b_170>", "<c_0>"]}


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_a_file_as_the_tools_write_it(tmp_path):
    found = read_index_json(write(tmp_path / "Beauty.index.json", LETTER))
    assert found.item_ids.dtype == np.int64
    assert found.item_ids.tolist() == [0, 1]
    assert found.codes.tolist() == [[183, 70, 232], [52, 170, 0]]
    assert found.codebook_sizes == (184, 171, 233)
    assert not found.counter
    sized = read_index_json(tmp_path / "Beauty.index.json", codebook_sizes=[256] * 3)
    assert sized.codebook_sizes == (256, 256, 256)


@pytest.mark.parametrize("item_ids", [[7, -1, 10**15], ["B00É", "07", 'quo"te']])
def test_round_trip(tmp_path, item_ids):
    codes = np.array([[1, 2, 3], [0, 0, 0], [255, 9, 1]])
    write_index_json(tmp_path / "ids.json", item_ids, codes)
    found = read_index_json(tmp_path / "ids.json")
    assert found.item_ids.tolist() == item_ids
    assert (found.codes == codes).all()
    assert json.loads((tmp_path / "ids.json").read_text("utf-8"))[str(item_ids[0])][1] == "<b_2>"
    write_index_json(tmp_path / "again.json", found.item_ids, found.codes)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "ids.json").read_bytes()


def test_ids_with_a_leading_zero_stay_strings(tmp_path):
    found = read_index_json(write(tmp_path / "a.json", {"01": ["<a_1>"], "1": ["<a_2>"]}))
    assert found.item_ids.tolist() == ["01", "1"]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("{", ArtifactError, "not a readable"),
        ("[]", ArtifactError, "has to hold"),
        ({}, ArtifactError, "has to hold"),
        ({"0": "<a_1>"}, ArtifactError, "has to hold"),
        ({"0": [1, 2]}, ArtifactError, "has to hold"),
        ({"0": {"a": ["<a_1>"]}}, ArtifactError, "has to hold"),
        ({"0": ["<a_1>"], "1": ["<a_1>", "<b_1>"]}, ShapeError, "1 tokens for item '0' and 2"),
        ({"0": ["<b_1>", "<a_1>"]}, DataError, "token 0 .* '<b_1>'"),
        ({"0": ["<a_-1>"]}, DataError, "'<a_-1>'"),
        ({"0": ["<a_1>", "<a_2>"]}, DataError, "token 1"),
        ('{"0": ["<a_1>"], "0": ["<a_2>"]}', DataError, "distinct"),
    ],
)
def test_other_files_are_refused(tmp_path, value, error, message):
    with pytest.raises(error, match=message):
        read_index_json(write(tmp_path / "x.index.json", value))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="not there"):
        read_index_json(tmp_path / "none.json")


def test_codes_with_offsets_are_recognised(tmp_path):
    path = write(tmp_path / "x.json", {"0": ["<a_3>", "<b_260>"], "1": ["<a_0>", "<b_511>"]})
    with pytest.raises(DataError, match=r"offset by \(0, 256\)"):
        read_index_json(path, codebook_sizes=[256, 256])
    with pytest.raises(DataError, match=r"below 100; got 511\.$"):
        read_index_json(path, codebook_sizes=[256, 100])
    with pytest.raises(ShapeError, match="one size a level"):
        read_index_json(path, codebook_sizes=[256])


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ShapeError, match="26"):
        write_index_json(tmp_path / "x.json", [1], np.zeros((1, 27), np.int64))
    with pytest.raises(ShapeError, match="transposed"):
        write_index_json(tmp_path / "x.json", [1, 2], np.zeros((3, 2), np.int64))
    with pytest.raises(DataError, match="distinct"):
        write_index_json(tmp_path / "x.json", [1, 1], np.zeros((2, 2), np.int64))
    with pytest.raises(DataError, match="integers from 0"):
        write_index_json(tmp_path / "x.json", [1, 2], np.zeros((2, 2)))
    assert not list(tmp_path.iterdir())
