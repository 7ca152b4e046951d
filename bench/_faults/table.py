"""The faults of docs/reliability.md, and whether the tests that make each for real pass on this machine."""

import re
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/reliability.md"


def read_faults(word: str = "") -> dict[str, list[str]]:
    """{fault: its tests, such as tests/test_hub.py::test_x}, of the rows whose fault has the word in it."""
    rows = re.findall(r"(?m)^\| (.+?) \| .*? \|( `test_\w+::.+) \|$", PAGE.read_text(encoding="utf-8"))
    files = {path.stem: path for path in PAGE.parents[1].glob("tests/**/test_*.py")}
    return {
        fault: [f"{files[module]}::{test}" for module, test in re.findall(r"`(\w+)::(\w+)`", named)]
        for fault, named in rows
        if word in fault
    }


class Outcomes:
    """A plugin of pytest that keeps how each test ended. passed is of its own code, the rest of its fixtures too."""

    def __init__(self):
        self.of = defaultdict(set)

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or not report.passed:
            self.of[report.nodeid.partition("::")[2].partition("[")[0]].add(report.outcome)


def how_held(seen: list[set[str]]) -> str:
    """seen: of each of a row's tests how its cases ended. Of several cases one may be skipped, as it is not possible
    here; a test of which none was possible shows nothing, so that the row is held in part at most."""
    if not all(each <= {"passed", "skipped"} for each in seen) or not any("passed" in each for each in seen):
        return f"NOT held: {', '.join(sorted(set().union(*seen)))}"
    skipped = sum("passed" not in each for each in seen)
    return f"in part: {skipped} of {len(seen)} tests skipped" if skipped else "held"


def print_held(word: str = "") -> int:
    """Runs the tests and prints a line a fault. 0 where all are held."""
    import pytest

    faults, outcomes = read_faults(word), Outcomes()
    if not faults:  # without tests named pytest would run them all
        print(f"no fault of {PAGE.name} has {word!r} in it")
        return 1
    tests = dict.fromkeys(test for named in faults.values() for test in named)
    pytest.main(["--override-ini=addopts=", "--quiet", "-m", "not gpu", *tests], plugins=[outcomes])
    held = {}
    for fault, named in faults.items():
        seen = [outcomes.of[test.partition("::")[2]] or {"not run"} for test in named]
        held[fault] = how_held(seen)
    for fault, text in held.items():
        print(f"{fault[:100]:102}{text}")
    return int(any(text != "held" for text in held.values()))
