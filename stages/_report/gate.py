"""The gates of a pull request: figures of metrics.json that may not pass a bound, or not become worse.

A figure with an interval has become worse only where the interval of the difference leaves out zero: of the same rows
in pairs where both revisions' rows can be had, else of two independent measurements.
"""

import json
import math
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages._report.rows import change, read_rows
from stages.shared.errors import UserError
from stages.shared.measures import COLUMNS, MEASURES
from stages.shared.params import Gate, read_yaml_text
from stages.shared.paths import EVALUATIONS, RESULT, read_json

LOCK = Path("dvc.lock")
TEST = "data/clean/test.parquet"


class Verdict(NamedTuple):
    failed: bool
    line: str


def at_revision(revision: str, path: Path) -> str:
    """A file as Git has it there."""
    command = ["git", "show", f"{revision}:{path}"]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603  (Git itself, no shell)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
        raise UserError(
            f"report.gates: {path} of {revision!r} cannot be read ({reason}). Fetch it, or correct the name"
        )
    return done.stdout.decode()


def look_up(metrics: dict, name: str, where: str) -> tuple[float, dict | None]:
    """(value, {lo, hi} where it has an interval)."""
    values: object = metrics
    *path, last = name.split(".")
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    value = values.get(last) if isinstance(values, dict) else None
    if not isinstance(value, int | float):
        raise UserError(f"report.gates: {where} has no figure {name}. Correct the name, or take the gate out")
    if f"{last}_lo" in values:
        return value, {end: values[f"{last}_{end}"] for end in ("lo", "hi")}
    return value, None


def test_set(lock_text: str) -> str | None:
    """The hash of the test split that the tuned model was evaluated on."""
    deps = read_yaml_text(lock_text).get("stages", {}).get("evaluate@tuned", {}).get("deps", [])
    return next((dep.get("md5") for dep in deps if dep["path"] == TEST), None)


def earlier_rows(revision: str, name: str) -> list[dict] | None:
    """metrics/evaluate/<name>.rows.jsonl of a revision, from DVC's cache or remote, where it can be had."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        text = dvc.api.read(str(EVALUATIONS / f"{name}.rows.jsonl"), rev=revision)
    except (DvcException, OSError):
        return None
    rows = [json.loads(line) for line in text.split("\n") if line]
    # An older revision may have counted less of each row.
    return rows if all(name in row for row in rows for name in COLUMNS) else None


def paired(gate: Gate) -> tuple[float, float] | None:
    """The interval of the difference on the same rows, where both revisions' rows are at hand."""
    section, _, rest = gate.metric.partition(".")
    name, _, measure = rest.partition(".")
    path = EVALUATIONS / f"{name}.rows.jsonl"
    if section != "evaluate" or name not in ("base", "tuned") or measure not in MEASURES or not path.is_file():
        return None
    before, after = earlier_rows(gate.against, name), read_rows(path)
    if before is None or [row["id"] for row in before] != [row["id"] for row in after]:
        return None
    found = change(before, after)
    return found[f"{measure}_lo"], found[f"{measure}_hi"]


def unpaired(before: float, after: float, intervals: list[dict | None]) -> tuple[float, float]:
    """Of two independent figures; one without an interval is exact."""
    widths = [(each["hi"] - each["lo"]) / 2 for each in intervals if each]
    half = math.sqrt(np.square(widths).sum())
    return after - before - half, after - before + half


def bounded(gate: Gate, metrics: dict) -> Verdict:
    value, _ = look_up(metrics, gate.metric, str(RESULT))
    failed = value > gate.bound if gate.better == "lower" else value < gate.bound
    limit = "at most" if gate.better == "lower" else "at least"
    return Verdict(failed, f"{gate.metric} is {value:.6g}, and may be {limit} {gate.bound:.6g}")


def compared(gate: Gate, metrics: dict) -> Verdict:
    earlier = json.loads(at_revision(gate.against, RESULT))
    (after, now), (before, then) = (
        look_up(values, gate.metric, where) for values, where in ((metrics, str(RESULT)), (earlier, gate.against))
    )
    said = f"{gate.metric} is {after:.6g}, in {gate.against} {before:.6g}"
    if gate.metric.startswith("evaluate."):
        sets = [test_set(at_revision(gate.against, LOCK)), test_set(LOCK.read_text(encoding="utf-8"))]
        if sets[0] != sets[1]:
            return Verdict(False, f"{said}: not compared, since the test split is another one")
    pair = paired(gate)
    low, high = pair or unpaired(before, after, [then, now])
    failed = low > 0 if gate.better == "lower" else high < 0
    how = "in pairs" if pair else "unpaired" if now or then else "exact"
    return Verdict(failed, f"{said}; 95 % interval of the difference ({how}): {low:+.4g} to {high:+.4g}")


def judge(gates: list[Gate]) -> list[Verdict]:
    """What each gate says of metrics.json as it lies here.

    Raises:
        UserError: no gate at all, one that names no figure, or a revision that cannot be read.
    """
    if not gates:
        raise UserError("report.gates is empty: there is nothing to check. Name a metric there")
    try:
        metrics = read_json(RESULT)
    except (OSError, ValueError) as error:
        raise UserError(f"{RESULT} cannot be read ({error}). `dvc repro report` makes it") from None
    return [bounded(gate, metrics) if gate.against is None else compared(gate, metrics) for gate in gates]
