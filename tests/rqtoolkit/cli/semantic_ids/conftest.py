"""Files that several tests of `rqtool semantic-ids` start from, made once."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ITEMS, NEW, DIM = 120, 20, 6
SMALL = ["--codebook-size", 8, "--set", "rounds=1", "--set", "starts=1"]


@pytest.fixture
def command_group() -> str:
    """Return the group of commands that `run`, `run_json` and `refused` run."""
    return "semantic-ids"


@pytest.fixture(scope="session")
def small() -> list[object]:
    """Return options of a quick fit."""
    return SMALL


@pytest.fixture(scope="session")
def shop(rqtool, tmp_path_factory) -> Path:
    """Return a folder with embeddings, ids, histories, and semantic IDs `ids` of integer items."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(6, DIM)) * 2
    x = (kinds[np.arange(ITEMS + NEW) % 6] + rng.normal(size=(ITEMS + NEW, DIM))).astype("f4")
    names = [f"i{row:03d}" for row in range(ITEMS + NEW)]
    np.save(folder / "x.npy", x[:ITEMS])
    np.save(folder / "new.npy", x[ITEMS:])
    np.savez(folder / "two.npz", old=x[:ITEMS], new=x[ITEMS:])
    (folder / "new.txt").write_text("".join(f"{row}\n" for row in range(ITEMS, ITEMS + NEW)))
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in names[:ITEMS]))
    (folder / "groups.txt").write_text(
        "".join(f"{row}\tkind {row % 6}\n" for row in range(1, ITEMS))
    )
    columns = {"name": names[:ITEMS], "vector": list(x[:ITEMS])}
    labels = [f"kind {row % 6}" if row else None for row in range(ITEMS)]
    pq.write_table(pa.table(columns | {"label": labels}), folder / "x.parquet")
    lines = [
        f"u{user} " + " ".join(map(str, rng.permutation(20)[:6] * 6 + user % 6))
        for user in range(30)
    ]
    (folder / "histories.txt").write_text("\n".join(lines) + "\n")
    rqtool(
        "semantic-ids", "fit", folder / "x.npy", *SMALL, "--encoder", "toy", "--out", folder / "ids"
    )
    return folder


@pytest.fixture
def catalogue(shop, tmp_path) -> Path:
    """Return a copy of the semantic IDs, to be changed."""
    return Path(shutil.copytree(shop / "ids", tmp_path / "catalogue"))
