"""A checkpoint made by the authors' code gives what their code gave."""

import pytest
import torch

from benchmarks.parity import compare_release
from imagegen import export_release, import_release


@pytest.fixture(scope="module")
def parity(shared_data):
    return shared_data("parity/official/stage1/model.pt").parents[2]


def test_every_stored_output_is_reproduced(parity):
    rows = compare_release(parity)
    assert len(rows) == 31
    assert [row for row in rows if not row.passed] == []


def test_round_trip_of_the_official_files_is_exact(parity, tmp_path):
    export_release(*import_release(parity / "official"), tmp_path / "back")
    for stage in ("stage1", "stage2"):
        before, after = (
            torch.load(folder / stage / "model.pt", weights_only=True)["state_dict"]
            for folder in (parity / "official", tmp_path / "back")
        )
        assert before.keys() == after.keys()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
