import os

import pytest

from rqtoolkit.errors import ArtifactError
from rqtoolkit.io.atomic import atomic_folder, atomic_path


def test_file_appears_when_whole(tmp_path):
    target = tmp_path / "codes.npy"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npy"
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_file_alone(tmp_path, error):
    target = tmp_path / "codes.npy"
    target.write_text("old")

    def fail():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name != "posix", reason="folders are flushed on POSIX alone")
def test_the_folder_is_flushed_once_the_file_has_its_name(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def watch(descriptor):
        flushed.append((os.fstat(descriptor).st_ino, sorted(p.name for p in tmp_path.iterdir())))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    with atomic_path(tmp_path / "codes.npy") as temporary:
        temporary.write_text("new")
        name = temporary.name
    file = (tmp_path / "codes.npy").stat().st_ino
    assert flushed == [(file, [name]), (tmp_path.stat().st_ino, ["codes.npy"])]


@pytest.mark.skipif(os.name != "posix", reason="folders are flushed on POSIX alone")
def test_a_file_system_that_cannot_flush_folders_gets_the_file(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if os.fstat(descriptor).st_ino == tmp_path.stat().st_ino:
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with atomic_path(tmp_path / "codes.npy") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "codes.npy").read_text() == "new"


def test_missing_folder_and_folder_in_the_way(tmp_path):
    for target, words in [(tmp_path / "no" / "x", "no folder"), (tmp_path, "is a folder")]:
        with pytest.raises(ArtifactError, match=words), atomic_path(target):
            pass
    assert list(tmp_path.iterdir()) == []


def test_folder_appears_when_whole(tmp_path):
    target = tmp_path / "run"
    target.mkdir()  # an empty one may be there
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("1")
        assert list(target.iterdir()) == []
    assert (target / "a").read_text() == "1"
    assert list(tmp_path.iterdir()) == [target]


def test_failed_folder_leaves_nothing(tmp_path):
    def fail():
        with atomic_folder(tmp_path / "run") as temporary:
            (temporary / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_full_folder_is_kept(tmp_path):
    (tmp_path / "mine").write_text("1")
    with pytest.raises(ArtifactError, match="not empty"), atomic_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
