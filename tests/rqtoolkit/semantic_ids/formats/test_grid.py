import pickle

import numpy as np
import pytest
import torch

from rqtoolkit.errors import ArtifactError, DataError, ShapeError
from rqtoolkit.semantic_ids.formats import read_grid, write_grid

# Six items of two levels, of which 0, 2, 5 share an ID.
CODES = np.array([[4, 1], [4, 2], [4, 1], [0, 0], [9, 9], [4, 1]])
FROM_ZERO, FROM_ONE = [0, 0, 1, 0, 0, 2], [1, 0, 2, 0, 0, 3]


def save(path, rows, dtype=torch.int64):
    torch.save(torch.as_tensor(np.asarray(rows)).to(dtype), path)
    return path


@pytest.mark.parametrize("counter", [FROM_ZERO, FROM_ONE])
def test_either_counter_is_kept_as_it_is(tmp_path, counter):
    path = save(tmp_path / "merged_predictions_tensor.pt", [*CODES.T, counter])
    found = read_grid(path)
    assert found.counter
    assert found.item_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert (found.codes[:, :2] == CODES).all()
    assert found.codes[:, 2].tolist() == counter
    assert found.codebook_sizes == (10, 10, max(counter) + 1)
    write_grid(tmp_path / "again.pt", found.codes, found.item_ids)
    assert torch.equal(torch.load(tmp_path / "again.pt"), torch.load(path))


@pytest.mark.parametrize(
    "counter", [[0] * 6, [1, 1, 2, 0, 0, 3], [1, 0, 2, 0, 0, 2], FROM_ONE[::-1]]
)
def test_a_last_row_that_counts_nothing_is_refused(tmp_path, counter):
    path = save(tmp_path / "x.pt", [*CODES.T, counter])
    with pytest.raises(DataError, match="without counter"):
        read_grid(path)
    assert read_grid(path, counter=False).codes.shape == (6, 3)


def test_a_tensor_before_its_transposition_is_recognised(tmp_path):
    path = save(tmp_path / "x.pt", CODES)
    with pytest.raises(ShapeError, match="an item a row"):
        read_grid(path, counter=False)
    with pytest.raises(ShapeError, match="an item a row"):
        read_grid(path, counter=False, codebook_sizes=[10, 10])


def test_fewer_items_than_levels_are_read_with_sizes(tmp_path):
    path = save(tmp_path / "x.pt", [[1], [2], [3]])
    found = read_grid(path, counter=False, codebook_sizes=[4, 4, 4])
    assert found.codes.tolist() == [[1, 2, 3]]
    with pytest.raises(ShapeError, match="codebook_sizes"):
        read_grid(path, counter=False)


def test_whole_floats_are_codes_and_fractions_are_not(tmp_path):
    # Without GRID's step against duplicates the merged tensor is float32.
    assert (
        read_grid(save(tmp_path / "x.pt", CODES.T, torch.float32), counter=False).codes == CODES
    ).all()
    with pytest.raises(DataError, match="whole numbers"):
        read_grid(save(tmp_path / "y.pt", CODES.T + 0.5, torch.float32), counter=False)


def test_offsets_are_recognised(tmp_path):
    path = save(tmp_path / "x.pt", (CODES + np.array([0, 10])).T)
    with pytest.raises(DataError, match=r"offset by \(0, 10\)"):
        read_grid(path, counter=False, codebook_sizes=[10, 10])


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a file ran code",))


def test_files_that_would_run_code_are_refused(tmp_path):
    torch.save({"codes": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "empty.pt").touch()
    for name in ("evil", "plain", "broken", "empty"):
        with pytest.raises(ArtifactError, match=f"{name}.pt is not a readable"):
            read_grid(tmp_path / f"{name}.pt")
    torch.save({"keys": torch.arange(3)}, tmp_path / "dict.pt")
    with pytest.raises(ArtifactError, match="got dict"):
        read_grid(tmp_path / "dict.pt")
    with pytest.raises(ShapeError, match="tensor"):
        read_grid(save(tmp_path / "flat.pt", [1, 2, 3]))


def test_columns_follow_the_item_ids(tmp_path):
    order = np.array([3, 0, 5, 1, 4, 2])
    write_grid(tmp_path / "x.pt", CODES[order], order)
    assert (torch.load(tmp_path / "x.pt").numpy() == CODES.T).all()
    for ids, strange in ((list("abcdef"), "got 'a'"), ([1, 2, 3, 4, 5, 6], "got 6")):
        with pytest.raises(DataError, match=rf"0 … 5, .*{strange}\."):
            write_grid(tmp_path / "y.pt", CODES, ids)
