"""The gates of a pull request: figures of metrics.json that may not pass a bound, or not become worse.

A figure with an interval has become worse only where the interval of the difference leaves out zero: of the same rows
in pairs where both revisions' rows can be had, else of two independent measurements.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from stages._report.revisions import Outputs, Revision
from stages._report.rows import change
from stages.shared.errors import UserError
from stages.shared.measures import COLUMNS, MEASURES
from stages.shared.params import Gate
from stages.shared.paths import RESULT


class Verdict(NamedTuple):
    failed: bool
    line: str
    judged: bool = True  # not where there was nothing to compare with


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


@lru_cache(maxsize=4)
def paired_rows(name: str, earlier: Revision, later: Revision) -> dict[str, float] | None:
    """Every measure's difference on the same rows, where both revisions' rows are at hand."""
    after = later.rows(name)
    before = earlier.rows(name) if after else None
    if not before or [row["id"] for row in before] != [row["id"] for row in after]:
        return None
    if not all(name in row for row in before for name in COLUMNS):
        return None  # an older revision may have counted less of each row
    return change(before, after)


def paired(metric: str, earlier: Revision, later: Revision) -> tuple[float, float] | None:
    """The interval of one figure's difference on the same rows."""
    section, _, rest = metric.partition(".")
    name, _, measure = rest.partition(".")
    if section != "evaluate" or name not in ("base", "tuned") or measure not in MEASURES:
        return None
    found = paired_rows(name, earlier, later)
    return found and (found[f"{measure}_lo"], found[f"{measure}_hi"])


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


def compared(gate: Gate, later: Revision) -> Verdict:
    earlier = Revision(gate.against, later.outputs)
    try:
        (after, now), (before, then) = (
            look_up(each.metrics, gate.metric, where) for each, where in ((later, str(RESULT)), (earlier, gate.against))
        )
        said = f"{gate.metric} is {after:.6g}, in {gate.against} {before:.6g}"
        if gate.metric.startswith("evaluate.") and earlier.test_set != later.test_set:
            return Verdict(False, f"{said}: not compared, since the test split is another one", judged=False)
        pair = paired(gate.metric, earlier, later)
    except (ValueError, KeyError) as error:
        raise UserError(f"report.gates: {gate.against} has files of another kind ({error!r})") from None
    low, high = pair or unpaired(before, after, [then, now])
    failed = low > 0 if gate.better == "lower" else high < 0
    how = "in pairs" if pair else "unpaired" if now or then else "exact"
    return Verdict(failed, f"{said}; 95 % interval of the difference ({how}): {low:+.4g} to {high:+.4g}")


def judge(gates: list[Gate], revision: Revision | None = None) -> list[Verdict]:
    """What each gate says of the metrics.json of a revision, or as it lies here.

    Raises:
        UserError: no gate at all, one that names no figure, or a revision that cannot be read.
    """
    if not gates:
        raise UserError("report.gates is empty: there is nothing to check. Name a metric there")
    revision = revision or Revision(None, Outputs())
    try:
        metrics = revision.metrics
    except (UserError, ValueError) as error:
        raise UserError(f"{RESULT} cannot be read ({error}). `dvc repro report` makes it") from None
    return [bounded(gate, metrics) if gate.against is None else compared(gate, revision) for gate in gates]
