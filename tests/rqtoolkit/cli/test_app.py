import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import typer

from rqtoolkit import __version__
from rqtoolkit.cli import app as module
from rqtoolkit.cli.app import main
from rqtoolkit.errors import DataError


@pytest.fixture
def install(monkeypatch):
    """Return a function that adds commands as an installed package would, each a value to load."""

    def add(**targets):
        points = {}
        for name, target in targets.items():
            monkeypatch.setattr(module, f"_test_{name}", target, raising=False)
            value = target if isinstance(target, str) else f"rqtoolkit.cli.app:_test_{name}"
            points[name] = EntryPoint(name, value, "rqtoolkit.commands")
        monkeypatch.setattr(module, "_installed", lambda: points)

    return add


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["quantize", "--help"],
        ["quantize", "fit", "--help"],
        ["semantic-ids", "assign", "--help"],
    ],
)
def test_help_and_version_load_neither_torch_nor_faiss(arguments):
    script = (
        "import sys; from rqtoolkit.cli.app import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'faiss', 'numba', 'sklearn', 'matplotlib', 'pyarrow'};"
        "heavy &= set(sys.modules);"
        "sys.exit(code or ' '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "quantize" in done.stdout or __version__ in done.stdout


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"rqtool {__version__}\n", "")


def test_apps_and_functions_join_by_entry_point(install, capsys):
    group = typer.Typer(help="A group of another package.")

    @group.command()
    def say(word: str) -> None:
        print(word)

    def alone(times: int = 1) -> None:
        """A function of another package."""
        print("alone " * times)

    install(group=group, alone=alone)
    assert main(["group", "say", "hello"]) == 0
    assert main(["alone", "--times", "2"]) == 0
    assert capsys.readouterr().out == "hello\nalone alone \n"
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "A group of another package" in shown
    assert "A function of another package" in shown


def test_only_the_named_package_is_loaded(install, capsys):
    install(broken="a_module_that_is_not_there:app", good=lambda: print("good"))
    assert main(["good"]) == 0
    assert capsys.readouterr() == ("good\n", "")


def test_a_broken_package_does_not_break_rqtool(install, capsys):
    install(broken="a_module_that_is_not_there:app")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "quantize" in shown
    assert "Not available" in shown
    assert main(["broken", "run", "--fast"]) == 2
    error = capsys.readouterr().err
    assert "a_module_that_is_not_there" in error
    assert error.count("\n") == 1


def test_a_package_cannot_take_the_name_of_a_command(install, capsys):
    install(quantize=lambda: print("mine"))
    assert main(["quantize", "--help"]) == 0
    assert "sweep" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("place: value\n is wrong."), 2, "Error: place: value is wrong.\n"),
        (FileNotFoundError(2, "No such file", "x"), 2, "Error: [Errno 2] No such file: 'x'\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_exit_codes(install, capsys, error, code, words):
    def fail():
        raise error

    install(fail=fail)
    assert main(["fail"]) == code
    assert capsys.readouterr() == ("", words)


def test_a_bug_shows_its_traceback(install, capsys):
    install(fail=lambda: 1 // 0)
    assert main(["fail"]) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error
    assert "bug in rqtool" in error


@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback(install, capsys, arguments):
    def fail():
        raise DataError("wrong.")

    install(fail=fail)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("Error: wrong.\n")


def test_usage_errors(capsys):
    for arguments in (["nothing"], ["quantize", "fit"], ["quantize", "fit", "a", "--depth", "x"]):
        assert main(arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "x.npy", "--out", "a", "--method", "foo"],
        ["fit", "x.npy", "--out", "a", "--depth", "0"],
        ["fit", "x.npy", "--out", "a", "--depth", "x"],
        ["train", "a", "h.txt", "--out", "b", "--learning-rate", "x"],
    ],
)
def test_usage_errors_speak_of_words_and_not_of_validation(capsys, words):
    assert main(["semantic-ids", *words]) == 2
    shown = capsys.readouterr().err
    assert words[-2] in shown
    for phrase in ("Value error", "Input should", "unable to parse"):
        assert phrase not in shown
