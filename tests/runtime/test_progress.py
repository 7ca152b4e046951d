"""Progress in a log: a line at intervals, with how much is done and the current figures."""

import io
import sys

import pytest

from stages.runtime import progress as module
from stages.runtime.progress import LINE_SECONDS, progress


class Clock:
    """A time.monotonic that moves only when the test says so."""

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
    """What goes to stderr, which is not a terminal here."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    return log


def test_nothing_is_printed_before_the_first_interval_is_over(clock, log, capsys):
    with progress("score", 10, " rows") as counter:
        for _ in range(10):
            clock.now += LINE_SECONDS / 10 - 0.001
            counter.advance()
    assert capsys.readouterr().out == log.getvalue() == ""


def test_a_line_says_how_much_is_done_and_how_long_the_rest_takes(clock, log, capsys):
    with progress("train", 60, " steps") as counter:
        clock.now += LINE_SECONDS - 1
        counter.advance(10, loss="3.00")
        assert capsys.readouterr().out == ""
        clock.now += 1
        counter.advance(10, loss="2.50", rate="1e-3")
        assert capsys.readouterr().out == "train: 20 of 60 steps, loss 2.50, rate 1e-3, 40 s to go\n"
        assert not log.getvalue()


def test_the_same_time_passes_between_any_two_lines(clock, log, capsys):
    with progress("train", 1000, " steps") as counter:
        for _ in range(1000):
            clock.now += LINE_SECONDS / 8
            counter.advance()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"train: {done} of 1000 steps" for done in range(8, 1001, 8)]
    assert lines[-1].endswith(", 0 s to go")


def test_one_long_step_gives_one_line(clock, log, capsys):
    with progress("train", 3, " steps") as counter:
        clock.now += 5 * LINE_SECONDS
        counter.advance()
        counter.advance()
    assert capsys.readouterr().out == f"train: 1 of 3 steps, {10 * LINE_SECONDS:.0f} s to go\n"


def test_a_terminal_gets_a_bar_and_no_lines(clock, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("train", 3, " steps") as counter:
        clock.now += 5 * LINE_SECONDS
        counter.advance(2, loss="2.50")
        counter.bar.refresh()
    assert capsys.readouterr().out == ""
    assert "train" in terminal.getvalue()
    assert "2/3" in terminal.getvalue()
    assert "loss=2.50" in terminal.getvalue()


def test_an_error_closes_the_bar_and_is_raised(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ValueError, match="bad row"), progress("train", 3, " steps") as counter:
        raise ValueError("bad row")
    assert counter.bar.disable  # tqdm's close() sets it
