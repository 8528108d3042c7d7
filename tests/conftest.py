"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Times vary on shared machines: an example is slow, not wrong.
settings.register_profile("rqtoolkit", deadline=None)
settings.load_profile("rqtoolkit")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """Return a function that finds a file of the development data, or skips the test.

    The data are not part of a clone. Where the folder is there and CI=true, a missing file fails.
    """
    folder = Path(os.environ.get("RQTOOLKIT_TEST_DATA", ROOT.parent / "shared"))

    def find(relative: str) -> Path:
        path = folder / relative
        if not path.exists():
            message = f"{relative} is not in {folder}; set RQTOOLKIT_TEST_DATA to run this test"
            if folder.exists() and os.environ.get("CI") == "true":
                pytest.fail(message)
            pytest.skip(message)
        return path

    return find
