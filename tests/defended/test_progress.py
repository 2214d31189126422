"""What is shown of long work, and that nothing is shown of short work, or where nobody looks."""

import io
import time
from types import SimpleNamespace

import pytest

from defended import progress
from defended.progress import Forecast, shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    return stream


def work(seconds, **options):
    with shown("counting", 2, **options) as advance:
        advance(1)
        time.sleep(seconds)
        advance(1)


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_short_work_is_not_shown(terminal, monkeypatch, kind):
    monkeypatch.setenv("TERM", kind)
    work(0)
    assert terminal.getvalue() == ""


def test_long_work_is_shown_on_a_terminal(terminal):
    work(0.3)
    assert "counting" in terminal.getvalue()


def test_nothing_is_shown_where_stderr_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    work(0.1, forecast=lambda: pytest.fail("nobody asked"))
    assert capsys.readouterr() == ("", "")


def test_the_first_line_says_how_long_it_will_take(terminal):
    work(0, forecast=lambda: Forecast(0.01, "at once"))
    assert terminal.getvalue() == ""
    work(0.2, forecast=lambda: Forecast(337.0, "337 s are to be expected"))
    lines = terminal.getvalue().splitlines()
    assert "337 s are to be expected" in lines[0]


def test_what_is_not_wanted_is_silent_with_all_that_is_inside_of_it(terminal):
    with shown("outside", wanted=False):
        work(0.2)
    assert terminal.getvalue() == ""
    work(0.2)
    assert "counting" in terminal.getvalue()


def test_work_inside_of_work_adds_a_line_for_as_long_as_it_takes(terminal):
    with shown("outside"):
        work(0.3, forecast=lambda: pytest.fail("the bar around it has said how long it takes"))
        around = progress._AROUND.get()
        assert [task.description for task in around.tasks] == ["outside"]
    assert "outside" in terminal.getvalue()
    assert "counting" in terminal.getvalue()


def test_an_error_ends_the_bar(terminal):
    with pytest.raises(ZeroDivisionError), shown("dividing", wanted=True):
        1 / 0  # noqa: B018
    assert progress._AROUND.get() is True
    before = terminal.getvalue()
    time.sleep(0.15)
    assert terminal.getvalue() == before
