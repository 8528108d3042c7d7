import io
import json

import pytest
from rich.console import Console

from rqtoolkit.cli import console


def test_progress_is_silent_for_short_jobs_off_the_terminal(capsys):
    with console.progress_bar() as progress:
        progress("work", 1, 2)
        progress("work", 2, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_off_the_terminal_says_at_times_that_the_job_lives(capsys, monkeypatch):
    clock = iter([0.0, 5.0, 11.0, 12.0, 25.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress_bar() as progress:
        for done in range(1, 5):
            progress("work", done, 4)
    assert capsys.readouterr() == ("", "work: 2/4\nwork: 4/4\n")


def test_progress_draws_one_bar_on_a_terminal_and_clears_it(monkeypatch, capsys):
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "_errors", Console(file=screen, force_terminal=True, width=80, color_system=None)
    )
    with console.progress_bar() as progress:
        progress("first", 1, 2)
        progress("second [x]", 3, 7)
        console.message("a [note]")
    shown = screen.getvalue()
    assert "second [x]" in shown
    assert "3/7" in shown
    assert "a [note]" in shown
    assert capsys.readouterr() == ("", "")


def test_what_follows_a_comma_changes_within_one_bar(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(console, "_errors", terminal)
    added = []
    add_task = console.Bars.add_task
    monkeypatch.setattr(
        console.Bars, "add_task", lambda *a, **k: added.append(a[1]) or add_task(*a, **k)
    )
    with console.progress_bar() as progress:
        progress("work", 1, 3)
        progress("work, loss 0.5", 2, 3)
        progress("other", 1, 3)
    assert added == ["work", "other"]


def test_progress_lets_exceptions_through():
    with pytest.raises(KeyboardInterrupt), console.progress_bar():
        raise KeyboardInterrupt


def test_json_has_no_nan(capsys):
    value = {"a": [1, 0.5, float("nan")], "b": (float("inf"), None), "c": "text"}
    console.print_json(value)
    out, error = capsys.readouterr()
    assert json.loads(out) == {"a": [1, 0.5, None], "b": [None, None], "c": "text"}
    assert error == ""


def test_table(capsys):
    console.print_table(["depth", "mse"], [[1, 0.123456789], [10, 2.0]])
    assert capsys.readouterr().out.split() == ["depth", "mse", "1", "0.12346", "10", "2"]


def test_a_table_wider_than_the_terminal_is_not_cut(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    cells = [f"a-rather-long-word-{place}" for place in range(8)]
    console.print_table([f"column_{place}" for place in range(8)], [cells])
    assert capsys.readouterr().out.splitlines()[1].split() == cells
