"""Mutation testing: changes the code a little, many times, and counts the changes that the tests do not notice.

    pip install -r bench/requirements-mutants.txt
    python -m tools.mutants [--area NAME ...] [--again]

mutmut makes the changes in a copy of the repository. For each it runs the tests that reach the changed function. That
takes one to four seconds a change, and up to twenty for one that survives. The result is bench/results/mutants.json.
After a new test, --again tries only the survivors that the result lists and that are not equivalent.

A mutant is equivalent where every result is the same, so that no test could notice it. tools/_mutants/explained.py says
why. The score is the share of killed mutants among those that are not equivalent. A mutant that never ends is killed.

Some changes do not count, since no test should assert wording. These are changes in `raise`, in `print`, in `progress`,
and in a text with blanks between its words. mutmut does not change decorated functions or values at the top of a
module. Tests that start processes take no part (UNFIT in tools/_mutants/sandbox.py).

cosmic-ray was not taken: it starts a new Python for each change, which imports torch every time.
"""

from stages.runtime.command import command_parser

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from stages.core.paths import read_json, write_json
from stages.runtime.errors import UserError
from tools._mutants.areas import AREAS, Area
from tools._mutants.explained import why_left
from tools._mutants.results import KILLED, TIMEOUT, Mutant, read_mutants
from tools._mutants.sandbox import ENTRY, MAKE, failure, make_sandbox

ROOT = Path(__file__).resolve().parents[1]
SPINNER = re.compile(r"\s*[\u2800-\u28ff]")  # the line that mutmut draws again and again
RESULT = ROOT / "bench/results/mutants.json"
COUNTS = ("mutants", "killed", "timeout", "survived", "equivalent", "unexplained")


def patterns(area: Area) -> list[str]:
    """mutmut's names of the area's mutants."""
    names = []
    for file, functions in area.code.items():
        module = file.removesuffix(".py").replace("/", ".")
        for function in functions:
            owner, _, name = function.rpartition(".")
            names.append(f"{module}.{f'xǁ{owner}ǁ{name}' if owner else f'x_{name}'}__mutmut_*")
        if not functions:
            names.append(f"{module}.*")
    return names


def run_mutmut(folder: Path, area: Area, names: list[str]) -> None:
    """Runs mutmut in the sandbox, one mutant at a time.

    Args:
        names: mutmut's names of the mutants, or patterns of them.

    Raises:
        UserError: It could not run, such as when the tests fail without any change.
    """
    log = folder / "mutmut.log"
    if in_sandbox(folder, ENTRY, log, "run", "--max-children", "1", *names):
        said = "\n".join(line for line in log.read_text(errors="replace").splitlines() if not SPINNER.match(line))
        raise UserError(f"mutmut failed:\n{failure(folder, area) or said[-3000:]}")


def made_mutants(folder: Path, area: Area) -> list[Mutant]:
    """Makes the area's mutants in the sandbox without trying any, which takes seconds."""
    log = folder / "mutmut.log"
    if in_sandbox(folder, MAKE, log):
        raise UserError(f"mutmut could not change the code:\n{log.read_text(errors='replace')[-3000:]}")
    return mutants_of(folder, area)


def in_sandbox(folder: Path, code: str, log: Path, *arguments: str) -> int:
    """Runs Python in the sandbox, writes what it prints to `log`, and returns its exit code."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    with open(log, "w") as output:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output, check=False)  # noqa: S603
    return done.returncode


def mutants_of(folder: Path, area: Area) -> list[Mutant]:
    return [mutant for file, members in area.code.items() for mutant in read_mutants(folder, file, members)]


def summary(mutants: list[Mutant]) -> dict:
    """The counts of an area, and its survivors."""
    counted = [mutant for mutant in mutants if not mutant.is_wording]
    survivors = [mutant for mutant in counted if mutant.status not in (KILLED, TIMEOUT)]
    return {
        "mutants": len(counted),
        "killed": sum(mutant.status == KILLED for mutant in counted),
        "timeout": sum(mutant.status == TIMEOUT for mutant in counted),
        "survived": len(survivors),
        "survivors": [
            {"mutant": mutant.name, "file": mutant.file, "line": mutant.line, "change": mutant.change}
            for mutant in survivors
        ],
    }


def updated(before: dict, mutants: list[Mutant]) -> dict:
    """An area's result after its survivors were tried again.

    Args:
        before: Its last result.
        mutants: All its mutants. Only the survivors have a status of this run.

    Raises:
        UserError: The code is another one than the last result is of.
    """
    counted = {mutant.name: mutant for mutant in mutants if not mutant.is_wording}
    tried = [counted.get(survivor["mutant"]) for survivor in before["survivors"]]
    same = [mutant.change if mutant else None for mutant in tried] == [each["change"] for each in before["survivors"]]
    if not same or len(counted) != before["mutants"]:
        raise UserError("the code has changed since the last result. Run this area without --again")
    now = summary(tried)
    return now | {"mutants": before["mutants"], **{key: before[key] + now[key] for key in ("killed", "timeout")}}


def explain(result: dict) -> None:
    """Adds to each survivor of an area why it is left, and counts those that are equivalent or not explained."""
    for survivor in result["survivors"]:
        survivor["why"], survivor["equivalent"] = why_left(survivor["file"], survivor["change"])
    result["equivalent"] = sum(survivor["equivalent"] for survivor in result["survivors"])
    result["unexplained"] = sum(not survivor["why"] for survivor in result["survivors"])


def with_sums(results: dict[str, dict]) -> dict[str, dict]:
    """The areas' results with their scores, and all areas together as "all"."""
    together = {key: sum(result[key] for result in results.values()) for key in COUNTS}
    return {
        name: result | {"score": round((result["killed"] + result["timeout"]) / (total - result["equivalent"]), 4)}
        for name, result in {"all": together, **results}.items()
        if (total := result["mutants"])
    }


def table(results: dict[str, dict]) -> str:
    """One line an area."""
    header = "".join(f"{key:>{len(key) + 2}}" for key in (*COUNTS, "score"))
    lines = [f"{'area':12}{header}"]
    for name, result in results.items():
        counts = "".join(f"{result[key]:{len(key) + 2}}" for key in COUNTS)
        lines.append(f"{name:12}{counts}{result['score']:7.1%}")
    return "\n".join(lines)


def last_results() -> dict[str, dict]:
    """{area: its last result}, without the sums."""
    results = read_json(RESULT) if RESULT.exists() else {}
    return {name: result for name, result in results.items() if name in AREAS}


def area_result(area: Area, before: dict | None) -> dict:
    """Runs an area.

    Args:
        before: Its last result, to try only its survivors that are not equivalent. None tries all mutants.

    Raises:
        UserError: mutmut could not run, or the code is another one than the last result is of.
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folder = Path(temporary)
        make_sandbox(ROOT, folder, area)
        if before is None:
            run_mutmut(folder, area, patterns(area))
            return summary(mutants_of(folder, area))
        updated(before, made_mutants(folder, area))  # the tests would take minutes
        survivors = before["survivors"]
        wanted = [each["mutant"] for each in survivors if not why_left(each["file"], each["change"]).is_equivalent]
        if wanted:
            run_mutmut(folder, area, wanted)
        return updated(before, mutants_of(folder, area))


def write_result(name: str, result: dict) -> dict[str, dict]:
    """Puts an area's result into the result file, and returns all results with their sums."""
    results = last_results() | {name: result}
    for each in results.values():
        explain(each)
    results = with_sums({name: results[name] for name in AREAS if name in results})
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULT, results)
    return results


def main(names: list[str], again: bool = False) -> str:
    """Runs the named areas one after the other and updates the result file after each.

    Args:
        names: The areas.
        again: Tries only the survivors of the last result.

    Raises:
        UserError: mutmut is missing, or could not run some areas. The others have their results.
    """
    if importlib.util.find_spec("mutmut") is None:
        raise UserError("mutmut is not installed: pip install -r bench/requirements-mutants.txt")
    results, failed = {}, []
    for name in names:
        before = last_results().get(name)
        if again and not (before and before["survivors"]):
            continue
        try:
            results = write_result(name, area_result(AREAS[name], before if again else None))
        except UserError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise UserError("\n".join(failed))
    return table(results) if results else "no survivors to try again"


if __name__ == "__main__":
    parser = command_parser("tools.mutants", __doc__)
    parser.add_argument("--area", nargs="+", choices=AREAS, default=list(AREAS), help="default: all")
    parser.add_argument("--again", action="store_true", help="try only the survivors of the last result")
    options = parser.parse_args()
    try:
        print(main(options.area, options.again))
    except UserError as error:
        sys.exit(f"mutants: {error}")
