"""The gates of a pull request: figures of metrics.json that must keep a bound, or must not become worse.

A figure with an interval became worse only where the interval of the difference leaves out zero. Where both revisions'
rows are available, the difference is taken in pairs on the same rows. Otherwise it is one of two independent
measurements. Figures from other rows, or from other params of `evaluate`, are not compared.
"""

import math
from functools import lru_cache
from typing import NamedTuple

from stages.comparison.revisions import MALFORMED, Outputs, Revision
from stages.core.params import Gate
from stages.core.paths import RESULT
from stages.core.statistics import COLUMNS, FEWEST_CLUSTERS, MEASURES, paired_change
from stages.runtime.counts import plural
from stages.runtime.errors import UserError

# Two evaluations are of the same answers only where these params of `evaluate` and these figures agree.
SETTINGS = ("max_rows", "generate_rows", "max_new_tokens", "run_tests", "test_seconds", "test_megabytes")
COUNTED = ("rows", "tokens", "generated_rows", "tested_rows")
OF_VALIDATION = ("train.validation_loss", "merge.parity.", "merge.naive.")


class Verdict(NamedTuple):
    """What a gate found. judged: False where there was nothing to compare with."""

    failed: bool
    line: str
    judged: bool = True


class NoFigureError(UserError):
    """metrics.json has no figure with a gate's name."""


def is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure_at(metrics: dict, name: str, where: str) -> tuple[float, dict | None]:
    """The figure with this dotted name.

    Args:
        where: The name of the metrics, for the message.

    Returns:
        (value, {lo, hi} where it has an interval, else None)

    Raises:
        NoFigureError: There is no number with this name.
        UserError: Only a part of its interval is there.
    """
    values: object = metrics
    *path, last = name.split(".")
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    value = values.get(last) if isinstance(values, dict) else None
    if not is_finite_number(value):
        raise NoFigureError(f"report.gates: {where} has no figure {name}. Correct the name, or take the gate out")
    ends = {end: values.get(f"{last}_{end}") for end in ("lo", "hi")}
    if not any(end is not None for end in ends.values()):
        return value, None
    if not all(map(is_finite_number, ends.values())):
        raise UserError(
            f"report.gates: {where} has only a part of the interval of {name}. `dvc repro report` makes it again"
        )
    return value, ends


def first_difference(kind: str, before: dict, after: dict, names: tuple[str, ...]) -> str | None:
    """One sentence about the first of `names` whose values differ, or None."""
    for name in names:
        if before.get(name) != after.get(name):
            return f"{kind}.{name} was {before.get(name)} and is {after.get(name)}"
    return None


def why_incomparable(metric: str, earlier: Revision, later: Revision) -> str | None:
    """Why a figure of two revisions cannot be compared, or None."""
    if metric.startswith(OF_VALIDATION):
        if earlier.validation_set != later.validation_set:
            return "the validation split is another one"
        before, after = (revision.metrics.get("merge", {}).get("parity", {}) for revision in (earlier, later))
        return first_difference("merge.parity", before, after, ("tokens",)) if metric.startswith("merge.") else None
    if not metric.startswith("evaluate."):
        return None
    if earlier.test_set != later.test_set:
        return "the test split is another one"
    before, after = (revision.metrics.get("evaluate", {}).get("tuned", {}) for revision in (earlier, later))
    changed_setting = first_difference("evaluate", earlier.evaluation, later.evaluation, SETTINGS)
    return changed_setting or first_difference("evaluate.tuned", before, after, COUNTED)


def what_was_answered(rows: list[dict]) -> list[list]:
    """What the rows were measured on."""
    return [[row.get(name) for name in ("id", "tokens", "answers", "tested")] for row in rows]


@lru_cache(maxsize=4)
def paired_changes(name: str, earlier: Revision, later: Revision) -> dict[str, float] | None:
    """The change of every measure on the same rows. None where the rows of a revision are not available, or differ."""
    after = later.rows(name)
    before = earlier.rows(name) if after else None
    if not before or what_was_answered(before) != what_was_answered(after):
        return None
    if not all(name in row for row in before for name in COLUMNS):
        return None  # an older revision may have counted less of each row
    return paired_change(before, after)


def paired_interval(metric: str, earlier: Revision, later: Revision) -> tuple[float, float] | None:
    """The interval of one figure's difference on the same rows, or None."""
    section, _, rest = metric.partition(".")
    name, _, measure = rest.partition(".")
    if section != "evaluate" or name not in ("base", "tuned") or measure not in MEASURES:
        return None
    changes = paired_changes(name, earlier, later)
    return (changes[f"{measure}_lo"], changes[f"{measure}_hi"]) if changes and f"{measure}_lo" in changes else None


def unpaired_interval(before: float, after: float, then: dict | None, now: dict | None) -> tuple[float, float]:
    """The interval of the difference of two independent figures.

    It follows from the ends of their intervals, which need not be symmetric (Zou and Donner 2008). A figure without an
    interval is exact.
    """
    then, now = (ends or {"lo": value, "hi": value} for ends, value in ((then, before), (now, after)))
    low = math.hypot(after - now["lo"], then["hi"] - before)
    high = math.hypot(now["hi"] - after, before - then["lo"])
    return after - before - low, after - before + high


def check_bound(gate: Gate, metrics: dict) -> Verdict:
    """Compares a figure with the bound of its gate."""
    value, _ = figure_at(metrics, gate.metric, str(RESULT))
    failed = value > gate.bound if gate.better == "lower" else value < gate.bound
    limit = "at most" if gate.better == "lower" else "at least"
    return Verdict(failed, f"{gate.metric} is {value:.6g}, and may be {limit} {gate.bound:.6g}")


def unjudged_merge(gate: Gate, metrics: dict) -> Verdict | None:
    """The verdict on a figure of a merge that was compared on too few rows, or None."""
    parity = metrics.get("merge", {}).get("parity", {})
    if not gate.metric.startswith("merge.parity.") or parity.get("judged") != 0:
        return None
    return Verdict(
        True,
        f"{gate.metric} was measured on {plural(parity['tokens'], 'token')} in "
        f"{plural(parity['rows'], 'validation conversation')}, too few to judge the merge. Raise "
        "clean.validation_fraction, or merge.parity_rows if the split has more rows",
    )


def compare_revisions(gate: Gate, earlier: Revision, later: Revision) -> Verdict:
    """Compares a figure with its value in another revision."""
    after, now = figure_at(later.metrics, gate.metric, str(RESULT))
    line = f"{gate.metric} is {after:.6g}"
    try:
        before, then = figure_at(earlier.metrics, gate.metric, gate.against)
    except NoFigureError:
        return Verdict(False, f"{line}: not compared, since {gate.against} does not have it", judged=False)
    line += f", in {gate.against} {before:.6g}"
    reason = why_incomparable(gate.metric, earlier, later)
    if not reason and gate.metric.startswith("evaluate.") and gate.metric.rpartition(".")[2] in MEASURES:
        reason = None if now and then else f"fewer than {FEWEST_CLUSTERS} rows give no interval"
    if reason:
        return Verdict(False, f"{line}: not compared, since {reason}", judged=False)
    pair = paired_interval(gate.metric, earlier, later)
    low, high = pair or unpaired_interval(before, after, then, now)
    failed = low > 0 if gate.better == "lower" else high < 0
    how = "in pairs" if pair else "unpaired" if now or then else "exact"
    return Verdict(failed, f"{line}; 95 % interval of the difference ({how}): {low:+.4g} to {high:+.4g}")


def judge_gates(gates: list[Gate], revision: Revision | None = None) -> list[Verdict]:
    """What each gate says of the metrics.json of a revision. Without one, of the metrics.json in the working tree.

    Raises:
        UserError: There is no gate, a gate names no figure, or a revision cannot be read.
    """
    if not gates:
        raise UserError("report.gates is empty: there is nothing to check. Name a metric there")
    revision = revision or Revision(None, Outputs())
    try:
        metrics = revision.metrics
    except (UserError, ValueError) as error:
        raise UserError(f"{RESULT} cannot be read ({error}). `dvc repro report` makes it") from None
    revisions = {gate.against: Revision(gate.against, revision.outputs) for gate in gates if gate.against}
    verdicts = []
    for gate in gates:
        try:
            earlier = revisions.get(gate.against)
            if unjudged := unjudged_merge(gate, metrics):
                verdicts.append(unjudged)
                continue
            verdicts.append(compare_revisions(gate, earlier, revision) if earlier else check_bound(gate, metrics))
        except MALFORMED as error:
            problem = " ".join(str(error).split()) or repr(error)
            raise UserError(
                f"report.gates: {gate.metric} cannot be judged: dvc.lock, {RESULT} or the rows of this revision or of "
                f"{gate.against} are not as the pipeline writes them ({problem})"
            ) from None
    return verdicts
