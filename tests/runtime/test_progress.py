"""Progress in a log: a line now and then, with how far it has come and the figures of the moment."""

import io
import sys

import pytest

from stages.runtime import progress as module
from stages.runtime.progress import LINE_SECONDS, progress


class Clock:
    """A time.monotonic that only moves when told."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def log(monkeypatch):
    """What goes to stderr, which is no terminal."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    return log


def test_nothing_is_said_before_its_time(clock, log, capsys):
    with progress("score", 10, " rows") as shown:
        for _ in range(10):
            clock.now += LINE_SECONDS / 10 - 0.001
            shown.advance()
    assert capsys.readouterr().out == log.getvalue() == ""


def test_a_line_says_how_far_it_has_come_and_how_long_it_will_take(clock, log, capsys):
    with progress("train", 60, " steps") as shown:
        clock.now += LINE_SECONDS - 1
        shown.advance(10, loss="3.00")
        assert capsys.readouterr().out == ""
        clock.now += 1
        shown.advance(10, loss="2.50", rate="1e-3")
        assert capsys.readouterr().out == "train: 20 of 60 steps, loss 2.50, rate 1e-3, 40 s to go\n"
        assert not log.getvalue()


def test_after_a_line_as_much_time_passes_until_the_next(clock, log, capsys):
    with progress("train", 1000, " steps") as shown:
        for _ in range(1000):
            clock.now += LINE_SECONDS / 8
            shown.advance()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"train: {done} of 1000 steps" for done in range(8, 1001, 8)]
    assert lines[-1].endswith(", 0 s to go")


def test_one_long_step_gives_one_line(clock, log, capsys):
    with progress("train", 3, " steps") as shown:
        clock.now += 5 * LINE_SECONDS
        shown.advance()
        shown.advance()
    assert capsys.readouterr().out == f"train: 1 of 3 steps, {10 * LINE_SECONDS:.0f} s to go\n"


def test_a_terminal_gets_a_bar_and_no_lines(clock, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("train", 3, " steps") as shown:
        clock.now += 5 * LINE_SECONDS
        shown.advance(2, loss="2.50")
        shown.bar.refresh()
    assert capsys.readouterr().out == ""
    assert "train" in terminal.getvalue()
    assert "2/3" in terminal.getvalue()
    assert "loss=2.50" in terminal.getvalue()


def test_an_error_closes_the_bar_and_goes_on(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ValueError, match="bad row"), progress("train", 3, " steps") as shown:
        raise ValueError("bad row")
    assert shown.bar.disable  # what tqdm's close() leaves
