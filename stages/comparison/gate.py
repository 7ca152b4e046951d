"""The gates of a pull request: figures of metrics.json that may not pass a bound, or not become worse.

A figure with an interval has become worse only where the interval of the difference leaves out zero: of the same rows
in pairs where both revisions' rows can be had, else of two independent measurements. Figures that were measured on
other rows, or with other params of `evaluate`, are compared on neither.
"""

import math
from functools import lru_cache
from typing import NamedTuple

from stages.comparison.revisions import OTHER_KIND, Outputs, Revision
from stages.core.params import Gate
from stages.core.paths import RESULT
from stages.core.statistics import COLUMNS, FEWEST, MEASURES, paired_change
from stages.runtime.errors import UserError

# Params of `evaluate` and figures of a model without which two evaluations are not of the same answers.
SETTINGS = ("max_rows", "generate_rows", "max_new_tokens", "run_tests", "test_seconds", "test_megabytes")
COUNTED = ("rows", "tokens", "generated_rows", "tested_rows")
OF_VALIDATION = ("train.validation_loss", "merge.parity.", "merge.naive.")


class Verdict(NamedTuple):
    failed: bool
    line: str
    judged: bool = True  # not where there was nothing to compare with


class NoFigureError(UserError):
    """metrics.json has no figure of a gate's name."""


def is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def look_up(metrics: dict, name: str, where: str) -> tuple[float, dict | None]:
    """(value, {lo, hi} where it has an interval)."""
    values: object = metrics
    *path, last = name.split(".")
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    value = values.get(last) if isinstance(values, dict) else None
    if not is_figure(value):
        raise NoFigureError(f"report.gates: {where} has no figure {name}. Correct the name, or take the gate out")
    ends = {end: values.get(f"{last}_{end}") for end in ("lo", "hi")}
    if not any(end is not None for end in ends.values()):
        return value, None
    if not all(map(is_figure, ends.values())):
        raise UserError(f"report.gates: {where} has no whole interval of {name}. `dvc repro report` makes it anew")
    return value, ends


def differing(kind: str, before: dict, after: dict, names: tuple[str, ...]) -> str | None:
    for name in names:
        if before.get(name) != after.get(name):
            return f"{kind}.{name} was {before.get(name)} and is {after.get(name)}"
    return None


def incomparable(metric: str, earlier: Revision, later: Revision) -> str | None:
    """Why a figure says nothing beside that of another revision; None where it does."""
    if metric.startswith(OF_VALIDATION):
        if earlier.validation_set != later.validation_set:
            return "the validation split is another one"
        before, after = (each.metrics.get("merge", {}).get("parity", {}) for each in (earlier, later))
        return differing("merge.parity", before, after, ("tokens",)) if metric.startswith("merge.") else None
    if not metric.startswith("evaluate."):
        return None
    if earlier.test_set != later.test_set:
        return "the test split is another one"
    before, after = (each.metrics.get("evaluate", {}).get("tuned", {}) for each in (earlier, later))
    other_settings = differing("evaluate", earlier.evaluation, later.evaluation, SETTINGS)
    return other_settings or differing("evaluate.tuned", before, after, COUNTED)


def answered(rows: list[dict]) -> list[list]:
    """What rows were measured on."""
    return [[row.get(name) for name in ("id", "tokens", "answers", "tested")] for row in rows]


@lru_cache(maxsize=4)
def paired_rows(name: str, earlier: Revision, later: Revision) -> dict[str, float] | None:
    """Every measure's difference on the same rows, where both revisions' rows are at hand."""
    after = later.rows(name)
    before = earlier.rows(name) if after else None
    if not before or answered(before) != answered(after):
        return None
    if not all(name in row for row in before for name in COLUMNS):
        return None  # an older revision may have counted less of each row
    return paired_change(before, after)


def paired(metric: str, earlier: Revision, later: Revision) -> tuple[float, float] | None:
    """The interval of one figure's difference on the same rows."""
    section, _, rest = metric.partition(".")
    name, _, measure = rest.partition(".")
    if section != "evaluate" or name not in ("base", "tuned") or measure not in MEASURES:
        return None
    found = paired_rows(name, earlier, later)
    return (found[f"{measure}_lo"], found[f"{measure}_hi"]) if found and f"{measure}_lo" in found else None


def unpaired(before: float, after: float, then: dict | None, now: dict | None) -> tuple[float, float]:
    """Of two independent figures, from the ends of their intervals, which need not lie evenly around them (Zou and
    Donner 2008). One without an interval is exact."""
    then, now = (ends or {"lo": value, "hi": value} for ends, value in ((then, before), (now, after)))
    low = math.hypot(after - now["lo"], then["hi"] - before)
    high = math.hypot(now["hi"] - after, before - then["lo"])
    return after - before - low, after - before + high


def bounded(gate: Gate, metrics: dict) -> Verdict:
    value, _ = look_up(metrics, gate.metric, str(RESULT))
    failed = value > gate.bound if gate.better == "lower" else value < gate.bound
    limit = "at most" if gate.better == "lower" else "at least"
    return Verdict(failed, f"{gate.metric} is {value:.6g}, and may be {limit} {gate.bound:.6g}")


def compared(gate: Gate, earlier: Revision, later: Revision) -> Verdict:
    after, now = look_up(later.metrics, gate.metric, str(RESULT))
    said = f"{gate.metric} is {after:.6g}"
    try:
        before, then = look_up(earlier.metrics, gate.metric, gate.against)
    except NoFigureError:
        return Verdict(False, f"{said}: not compared, since {gate.against} does not have it", judged=False)
    said += f", in {gate.against} {before:.6g}"
    reason = incomparable(gate.metric, earlier, later)
    if not reason and gate.metric.startswith("evaluate.") and gate.metric.rpartition(".")[2] in MEASURES:
        reason = None if now and then else f"fewer than {FEWEST} rows give no interval"
    if reason:
        return Verdict(False, f"{said}: not compared, since {reason}", judged=False)
    pair = paired(gate.metric, earlier, later)
    low, high = pair or unpaired(before, after, then, now)
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
    others = {gate.against: Revision(gate.against, revision.outputs) for gate in gates if gate.against}
    verdicts = []
    for gate in gates:
        try:
            other = others.get(gate.against)
            verdicts.append(compared(gate, other, revision) if other else bounded(gate, metrics))
        except OTHER_KIND as error:
            problem = " ".join(str(error).split()) or repr(error)
            raise UserError(
                f"report.gates: {gate.metric} cannot be judged: dvc.lock, {RESULT} or the rows of this revision or of "
                f"{gate.against} are not as the pipeline writes them ({problem})"
            ) from None
    return verdicts
