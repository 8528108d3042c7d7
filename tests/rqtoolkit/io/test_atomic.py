import os
import threading
import time
from pathlib import Path

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


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "v12.npy", tmp_path / "current.npy"
    target.write_text("old")
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent  # a renaming does not cross file systems
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["v12.npy"]


def test_a_link_to_an_empty_folder_stays(tmp_path):
    (tmp_path / "v12").mkdir()
    (tmp_path / "current").symlink_to("v12")
    with atomic_folder(tmp_path / "current") as temporary:
        (temporary / "a").write_text("1")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "v12" / "a").read_text() == "1"


def test_the_working_folder_by_its_shortest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_folder(".") as temporary:
        (temporary / "a").write_text("1")
    assert (tmp_path / "a").read_text() == "1"


@pytest.mark.skipif(os.name != "posix", reason="named pipes are of POSIX")
def test_pipes_and_devices_are_written_to_and_stay(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with atomic_path(pipe) as temporary:
        temporary.write_text("codes")
    reader.join()
    assert read == ["codes"]
    assert pipe.is_fifo()
    device = tmp_path / "null"
    device.symlink_to(os.devnull)
    with atomic_path(device) as temporary:
        temporary.write_text("codes")
    assert device.is_symlink()
    assert device.is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors as files are of Linux")
def test_the_name_of_an_open_descriptor_is_no_file_to_replace(tmp_path):
    read, write = os.pipe()
    name = tmp_path / "stdout"
    name.symlink_to(f"/proc/self/fd/{write}")
    with atomic_path(name) as temporary:
        temporary.write_text("codes")
    os.close(write)
    with os.fdopen(read) as stream:
        assert stream.read() == "codes"
    assert name.is_symlink()


def test_leftovers_of_killed_processes_go_a_day_later(tmp_path):
    long_ago = time.time() - 2 * 24 * 3600

    def age(path):
        os.utime(path, (long_ago, long_ago))

    stale = tmp_path / ".codes.0123abcd.partial.npy"
    fresh = tmp_path / ".codes.0123abce.partial.npy"
    another, foreign = tmp_path / ".ids.0123abcd.partial.npy", tmp_path / ".codes.mine.partial.npy"
    for path in (stale, fresh, another, foreign):
        path.write_text("half")
    for path in (stale, another, foreign):
        age(path)
    with atomic_path(tmp_path / "codes.npy") as temporary:
        temporary.write_text("new")
    assert not stale.exists()
    assert fresh.exists()
    assert another.exists()
    assert foreign.exists()
    abandoned, at_work = tmp_path / ".run.0123abcd.partial", tmp_path / ".run.0123abce.partial"
    for folder in (abandoned, at_work):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "a").write_text("half")
        for path in (folder / "inner", folder):
            age(path)
    age(abandoned / "inner" / "a")
    with atomic_folder(tmp_path / "run"):
        pass
    assert not abandoned.exists()
    assert at_work.exists()  # the file in it is new, if nothing else
