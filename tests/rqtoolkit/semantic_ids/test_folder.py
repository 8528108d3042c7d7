"""The folder: what it holds, what it refuses, and that nothing is lost when saving is cut off."""

import contextlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from rqtoolkit import ResidualQuantizer, SemanticIDs
from rqtoolkit.errors import ArtifactError, ConfigError
from rqtoolkit.quantizers import load_quantizer
from rqtoolkit.semantic_ids import folder as folders

X = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
NAMES = [f"äpfel {i}" for i in range(50)]


@pytest.fixture(scope="module")
def ids():
    quick = {"iterations": 4, "rounds": 1, "beam": 2}
    return SemanticIDs.fit(X, NAMES, codebook_size=8, settings=quick, encoder="mini")


@pytest.fixture
def saved(ids, tmp_path):
    ids.save(tmp_path / "ids")
    return tmp_path / "ids"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest_with(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_a_folder_holds(ids, saved):
    assert set(contents(saved)) == {"manifest.json", "codebooks.safetensors", "ids.parquet"}
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["version"] == ids.version
    assert manifest["parent"] is None
    assert manifest["codebook_sizes"] == [8, 8, 8]
    assert (manifest["dim"], manifest["encoder"], manifest["items"]) == (6, "mini", 50)
    assert manifest["fitted_with"]["seed"] == 0
    table = pd.read_parquet(saved / "ids.parquet")
    assert table.columns.tolist() == ["item_id", "code_0", "code_1", "code_2", "added"]
    assert table["item_id"].tolist() == NAMES
    np.testing.assert_array_equal(table[["code_0", "code_1", "code_2"]], ids.codes)
    with safe_open(saved / "codebooks.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("center"), ids.standardization.center)
        tables = file.get_tensor("quantizer.tables")
    np.testing.assert_array_equal(tables, ids.quantizer.codebooks)


@pytest.mark.parametrize("names", [NAMES, None])
def test_load_inverts_save(names, tmp_path):
    x = np.repeat(X[:25], 2, axis=0)
    quantizer = ResidualQuantizer(6, 2, [8, 5]).fit(X, rounds=0, beam=1)
    ids = SemanticIDs.assign(quantizer, x, names, collisions="token")
    ids.remove(ids.item_ids[:3])
    ids.save(tmp_path / "ids")
    loaded = SemanticIDs.load(tmp_path / "ids")
    for name in ("item_ids", "codes", "added", "retired_ids", "retired_codes"):
        stored, kept = getattr(loaded, name), getattr(ids, name)
        np.testing.assert_array_equal(stored, kept)
        assert stored.dtype.kind == kept.dtype.kind
    for name in ("version", "history", "number", "codebook_sizes", "collisions", "dim", "mse"):
        assert getattr(loaded, name) == getattr(ids, name)
    np.testing.assert_array_equal(loaded.encode(X), ids.encode(X))
    assert loaded.add(X, range(100, 150) if names is None else [f"new {i}" for i in range(50)])
    assert not loaded.quantizer.training


def test_equal_ids_make_equal_files(ids, saved, tmp_path):
    ids.save(tmp_path / "again")
    SemanticIDs.load(saved).save(tmp_path / "third")
    assert contents(saved) == contents(tmp_path / "again") == contents(tmp_path / "third")


def test_codes_without_codebooks(ids, tmp_path):
    bare = SemanticIDs.from_codes(ids.codes, NAMES, codebook_sizes=(8, 8, 9))
    bare.save(tmp_path / "bare")
    assert set(contents(tmp_path / "bare")) == {"manifest.json", "ids.parquet"}
    loaded = SemanticIDs.load(tmp_path / "bare")
    assert loaded.quantizer is None
    assert loaded.codebook_sizes == (8, 8, 9)
    assert np.isnan(loaded.mse)
    assert loaded.version == bare.version


def test_expectations_are_checked(saved):
    assert SemanticIDs.load(saved, encoder="mini", dim=6).encoder == "mini"
    with pytest.raises(ArtifactError, match="encoder='mini'; got encoder='maxi'"):
        SemanticIDs.load(saved, encoder="maxi")
    with pytest.raises(ArtifactError, match="dim=6; got dim=384"):
        SemanticIDs.load(saved, dim=384)


def test_codebooks_of_another_fit_are_refused(saved, tmp_path):
    quick = {"iterations": 4, "rounds": 0}
    SemanticIDs.fit(2 * X, NAMES, codebook_size=8, settings=quick).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "codebooks.safetensors", saved)
    with pytest.raises(ArtifactError, match=r"codebooks.safetensors was changed since .* sha256"):
        SemanticIDs.load(saved)


def test_codebooks_are_no_quantizer_of_raw_embeddings(saved):
    with pytest.raises(ArtifactError, match="class='SemanticIDs'"):
        load_quantizer(saved / "codebooks.safetensors")


def test_changed_and_missing_files_are_refused(saved):
    table = pd.read_parquet(saved / "ids.parquet")
    table.iloc[:-1].to_parquet(saved / "ids.parquet")
    with pytest.raises(ArtifactError, match=r"ids.parquet was changed"):
        SemanticIDs.load(saved)
    # Even with a checksum that fits, the manifest has to.
    checksum = folders._checksum(saved / "ids.parquet")
    files = json.loads((saved / "manifest.json").read_text())["files"]
    manifest_with(saved, files=files | {"ids.parquet": checksum})
    with pytest.raises(ArtifactError, match=r"50 rows as the manifest says; got 49"):
        SemanticIDs.load(saved)
    (saved / "ids.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"ids.parquet is missing"):
        SemanticIDs.load(saved)


def test_foreign_folders_and_versions_are_refused(saved, tmp_path):
    with pytest.raises(ArtifactError, match="no folder of semantic IDs"):
        SemanticIDs.load(tmp_path / "nowhere")
    manifest_with(saved, format_version=99)
    with pytest.raises(ArtifactError, match="format_version=99; this rqtoolkit reads 1"):
        SemanticIDs.load(saved)
    (saved / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="no folder of semantic IDs"):
        SemanticIDs.load(saved)
    manifest_with_other = tmp_path / "other"
    manifest_with_other.mkdir()
    (manifest_with_other / "manifest.json").write_text("[]")
    with pytest.raises(ArtifactError, match="not of semantic IDs"):
        SemanticIDs.load(manifest_with_other)


@pytest.mark.parametrize("missing", ["depth", "files", "history", "items"])
def test_manifests_that_lack_something_are_refused(saved, missing):
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest[missing]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=f"lacks {missing}"):
        SemanticIDs.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "version has to be a string; got 3"),
        ({"history": "abc"}, "history has to be a list of strings; got 'abc'"),
        ({"history": None}, "history has to be a list of strings; got None"),
        ({"items": "x"}, "items has to be an integer"),
        ({"retired": -1}, "retired has to be an integer"),
        ({"depth": True}, "depth has to be an integer"),
        (
            {"depth": 2},
            r"codebook_sizes has to have 2 numbers with .*; got \[8, 8, 8\]",
        ),
        ({"depth": 7}, "codebook_sizes has to have 7 numbers"),
        ({"codebook_sizes": [8, 8]}, "codebook_sizes has to have 3 numbers"),
        ({"codebook_sizes": None}, "codebook_sizes has to be a list of integers"),
        ({"codebook_sizes": [8, 8, 9]}, r"codebook_sizes=\[8, 8, 9\] is not that of codebooks"),
        ({"collisions": "foo"}, "collisions has to be one of match, token, allow; got 'foo'"),
        ({"collisions": "token"}, "codebook_sizes has to have 4 numbers"),
        ({"dim": 3}, "dim=3 is not that of codebooks.safetensors; got 6"),
        ({"dim": "x"}, "dim has to be a positive integer"),
        ({"encoder": 3}, "encoder has to be a string"),
        ({"mse": "x"}, "mse has to be a number"),
        ({"fitted_with": 3}, "fitted_with has to be a map"),
        ({"files": None}, "files has to map names to checksums"),
        ({"files": {}}, "files has to name codebooks.safetensors, ids.parquet with dim=6"),
        ({"files": {"../thesis.txt": "0"}}, "files has to name codebooks.safetensors, ids.parquet"),
    ],
)
def test_manifests_that_were_edited_are_refused(saved, changes, message):
    manifest_with(saved, **changes)
    with pytest.raises(ArtifactError, match=message):
        SemanticIDs.load(saved)


@pytest.mark.parametrize(
    ("codes", "added", "message"),
    [
        ([[0, 1], [2, 2], [0, 1]], 0, r"codes that differ, with collisions='match' .* got 1 too"),
        ([[0, 1], [2, 3], [0, 0]], 0, r"below \(3, 3\), and versions no later than 0; .* in row 1"),
        ([[0, 1], [2, 2], [0, 0]], 1, "versions no later than 0; got others in row 0"),
        ([["a", "b"]] * 3, 0, "no table of item ids and codes"),
    ],
)
def test_tables_that_do_not_fit_the_manifest_are_refused(tmp_path, codes, added, message):
    folder = tmp_path / "ids"
    SemanticIDs.from_codes([[0, 1], [2, 2], [0, 0]], collisions="match").save(folder)
    assert len(SemanticIDs.load(folder)) == 3
    table = pd.DataFrame(codes, columns=["code_0", "code_1"])
    table.insert(0, "item_id", np.arange(3))
    table.assign(added=np.int32(added)).to_parquet(folder / "ids.parquet")
    manifest_with(folder, files={"ids.parquet": folders._checksum(folder / "ids.parquet")})
    with pytest.raises(ArtifactError, match=message):
        SemanticIDs.load(folder)


def test_devices_that_are_not_there_are_named(saved):
    with pytest.raises(ConfigError, match="device='foo' cannot be used here; torch says"):
        SemanticIDs.load(saved, device="foo")


def test_a_link_to_a_folder_stays(saved, tmp_path):
    (tmp_path / "current").symlink_to("ids")
    through_link = SemanticIDs.load(tmp_path / "current")
    through_link.remove(NAMES[:1])
    through_link.save(tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert SemanticIDs.load(saved).version == through_link.version
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "ids"]
    saved.rename(tmp_path / ".ids.previous")  # while another process replaces it
    assert SemanticIDs.load(tmp_path / "current").version == through_link.version


def test_the_working_folder_is_replaced_and_stays_the_working_folder(saved, monkeypatch):
    monkeypatch.chdir(saved)
    inside = SemanticIDs.load(".")
    inside.remove(NAMES[:1])
    inside.save(".")
    assert SemanticIDs.load(".").version == SemanticIDs.load(saved).version == inside.version
    assert [path.name for path in saved.parent.iterdir()] == ["ids"]


def test_a_file_in_the_way_is_kept(ids, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"thesis.txt has to be a folder; got a file"):
        ids.save(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_nothing_else_is_replaced(ids, saved, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("x")
    with pytest.raises(ArtifactError, match="no folder of semantic IDs"):
        ids.save(tmp_path / "work")
    with pytest.raises(ArtifactError, match="no folder"):
        ids.save(tmp_path / "a" / "b")
    (saved / "notes").mkdir()
    (saved / "notes" / "report.html").write_text("kept")
    ids.save(saved)
    assert (saved / "notes" / "report.html").read_text() == "kept"
    assert SemanticIDs.load(saved).version == ids.version
    (tmp_path / "empty").mkdir()
    ids.save(tmp_path / "empty")
    assert SemanticIDs.load(tmp_path / "empty").version == ids.version


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("step", ["_write", "write_artifact", "atomic_path", "rename", "rmtree"])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_killed_while_replacing(saved, monkeypatch, step, call):
    """Whatever step is the last one, the old version or the new one is there."""
    old = SemanticIDs.load(saved)
    new = SemanticIDs.load(saved)
    new.remove(NAMES[:2])
    calls = iter([False] * call + [True] + [False] * 99)
    homes = {"rename": folders.Path, "rmtree": folders.shutil}
    home = homes.get(step, folders)
    original = getattr(home, step)

    def dying(*args, **kwargs):
        if next(calls):
            raise KilledError
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(home, step, dying)
        with contextlib.suppress(KilledError):
            new.save(saved)
    for _ in range(2):  # reading changes nothing
        assert SemanticIDs.load(saved).version in (old.version, new.version)
    new.save(saved)
    assert SemanticIDs.load(saved).version == new.version
    assert sorted(path.name for path in saved.parent.iterdir()) == ["ids"]


def test_load_leaves_chance_alone(saved):
    state = torch.random.get_rng_state()
    SemanticIDs.load(saved)
    assert (torch.random.get_rng_state() == state).all()
