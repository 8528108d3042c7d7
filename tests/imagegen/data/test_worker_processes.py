"""Workers leave with their parent, in silence, however it goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).with_name("worker_script.py")


@pytest.fixture
def start(tmp_path):
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"{number}.png")

    def start(way):
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(SCRIPT), way, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def members(group):
    """Return the live processes of a group; a zombie has done its part."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state != "Z":
            alive.append(int(path.parent.name))
    return alive


def assert_all_gone(group):
    for _ in range(200):
        if not members(group):
            return
        time.sleep(0.1)
    raise AssertionError(f"left behind: {members(group)}")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exit", "close"])
def test_workers_end_with_the_reading(start, way):
    process = start(way)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "", "")
    assert_all_gone(process.pid)


@pytest.mark.slow
def test_an_interrupt_is_for_the_parent(start):
    process = start("interrupt")
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to workers too
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")
    assert_all_gone(process.pid)


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(start):
    process = start("kill")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert out.startswith("children ")
    assert_all_gone(process.pid)
