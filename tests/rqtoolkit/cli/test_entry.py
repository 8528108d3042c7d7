"""The script: Ctrl-C while it imports is one line, as it is later."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"

# Interrupts itself as the named module begins to be imported, then starts as an installed script.
SCRIPT = """
import os, signal, sys
moment = sys.argv.pop(1)
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from {module} import {function}
sys.exit({function}())
"""


@pytest.mark.parametrize(
    "moment", ["rqtoolkit.cli.app", "typer", pytest.param("torch", marks=pytest.mark.slow)]
)
def test_an_interrupt_during_imports_is_one_line(tmp_path, moment):
    module, function = tomllib.loads(PROJECT.read_text())["project"]["scripts"]["rqtool"].split(":")
    script = SCRIPT.format(module=module, function=function)
    words = ["imagegen", "train", "digits", "--out", tmp_path / "run"]
    result = subprocess.run(
        [sys.executable, "-c", script, moment, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=100,
        # Where the tests run in the background of a shell, children would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (result.returncode, result.stderr) == (130, "Interrupted.\n")
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_is_no_error(tmp_path):
    """As with `rqtool … | true`: what is printed finds the pipe closed."""
    reading, writing = os.pipe()
    os.close(reading)
    script = "import sys; from rqtoolkit.cli.entry import main; sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-c", script, "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")
