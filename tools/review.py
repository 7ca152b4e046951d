"""Shows what a branch changed, as one Markdown page for its pull request: results, params, what reran, data, gates.

    python -m tools.review [--base origin/main] [--head HEAD] [--output FILE] [--status FILE]

It reads only commits, never the working tree, and runs nothing from them. So it is safe on a stranger's branch, and
works in a clone that has only Git. Where DVC's cache or remote has the outputs of both commits, it also shows rows,
loss curves and answers. --status writes {"state": success, failure or error, "description": …} for a commit's status.
It is a failure where a gate failed, or where this commit's code, params and data did not make its dvc.lock or
metrics.json.
"""

from stages.runtime.command import command_parser

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from stages.comparison.gate import Verdict, judge_gates, why_incomparable
from stages.comparison.measures import SHOWN_MEASURES, answers_are_code, label_of
from stages.comparison.number_text import duration, number, size, with_sign
from stages.comparison.revisions import DVC_LOCK, MALFORMED, Outputs, Revision, commit_of, git
from stages.comparison.visible_text import visible
from stages.core.params import Gate
from stages.core.paths import PARAMS, RESULT
from stages.core.yaml_files import read_yaml_text
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from tools._review.changes import (
    Change,
    Figure,
    merge_base,
    metric_changes,
    param_changes,
    reruns,
    staleness,
)
from tools._review.markdown import bounded, code, entities, foldable, list_names, markdown_table
from tools._review.outputs import from_outputs

MARKER = "<!-- made by tools/review.py -->"
BY_NAME = {measure.name: measure for measure in SHOWN_MEASURES}
TUNED = "evaluate.tuned."
DATA_COUNTS = ("clean.rows.", "clean.splits.")
MOST_DESCRIPTION = 140  # characters that GitHub accepts for a status


def figure_text(figure: Figure | None, show: Callable[[float], str] = number) -> str:
    if figure is None:
        return "–"
    ends = figure.interval
    return show(figure.value) + (f" ({show(ends['lo'])} to {show(ends['hi'])})" if ends else "")


def difference_text(change: Change, show: Callable[[float], str] = number) -> str:
    if change.before is None or change.after is None:
        return "new" if change.before is None else "gone"
    if change.arrow == "=":
        return "="
    text = f"{change.arrow} {show(abs(change.after.value - change.before.value))}"
    if change.interval:
        text += f" ({' to '.join(with_sign(show(end)) for end in change.interval)}, {change.how})"
    return text + (f", {change.verdict}" if change.verdict else "")


def number_format(name: str) -> Callable[[float], str]:
    last = name.rpartition(".")[2]
    return duration if last.endswith("seconds") else size if last.endswith("bytes") else number


def metric_row(change: Change, of_code: bool, compared: bool = True) -> list[str]:
    """The cells for one figure. A measure has its label and number format; any other figure has its key."""
    measure = BY_NAME.get(measure_of(change)) if change.name.startswith(TUNED) else None
    label = label_of(measure, of_code) if measure else code(change.name)
    show = measure.show if measure else number_format(change.name)
    sides = [figure_text(change.before, show)] if compared else []
    return [label, *sides, figure_text(change.after, show), *([difference_text(change, show)] if compared else [])]


def measure_of(change: Change) -> str:
    return change.name.rpartition(".")[2]


def is_measure(change: Change) -> bool:
    return measure_of(change) in BY_NAME or any(side and side.interval for side in (change.before, change.after))


def results_text(changes: list[Change], reason: str | None) -> str:
    """The tuned model's measures, and all other changed figures in a folded block.

    Args:
        reason: Why results are not compared, or None where they are.
    """
    same_test = reason is None
    order = list(BY_NAME)
    measured = [change for change in changes if change.name.startswith(TUNED) and is_measure(change)]
    of_code = answers_are_code({measure_of(change) for change in measured if change.after})
    measured.sort(key=lambda change: order.index(measure_of(change)) if measure_of(change) in BY_NAME else len(order))
    text = "### Results\n\nThe tuned model on the test split, with 95 % intervals.\n\n"
    if not same_test:
        text += f"**Before and now are not compared, since {entities(reason)}.**\n\n"
    header = ["", "before", "now", "change"] if same_test else ["", "now"]
    shown = [change for change in measured if same_test or change.after]
    text += markdown_table(header, [metric_row(change, of_code, same_test) for change in shown])
    elsewhere = [*measured, *(change for change in changes if change.name.startswith(DATA_COUNTS))]
    remaining = [change for change in changes if change.before != change.after and change not in elsewhere]
    if not same_test:
        remaining = [change for change in remaining if not change.name.startswith("evaluate.")]
    # Where the base is unchanged, the gain over it says nothing new.
    elif not any(change.name.startswith("evaluate.base.") for change in remaining):
        remaining = [change for change in remaining if not change.name.startswith("evaluate.change.")]
    if remaining:
        rows = markdown_table(["", "before", "now", "change"], [metric_row(change, of_code) for change in remaining])
        text += "\n" + foldable(f"Other figures that changed: {len(remaining)}", rows)
    return text


def params_text(changes: list[tuple[str, str | None, str | None]]) -> str:
    if not changes:
        return "### Params\n\nAs before.\n"
    rows = [[code(name), *("–" if value is None else code(value) for value in sides)] for name, *sides in changes]
    return "### Params\n\n" + markdown_table(["", "before", "now"], rows)


def what_ran(stages: list[tuple[str, dict[str, list[str]]]], base: Revision, head: Revision) -> str:
    if not stages:
        return "### What ran\n\nNothing: `dvc.lock` is the same.\n"
    rows = []
    for stage, reasons in stages:
        causes = {kind: names for kind, names in reasons.items() if kind != "outs"}
        said = [kind if not names else f"{kind}: {list_names(names)}" for kind, names in causes.items()]
        rows.append([code(stage), "; ".join(said) or "by hand, or its outputs differed"])
    text = "### What ran\n\n" + markdown_table(["stage", "because of"], rows, numbers_from=2)
    kept = [stage for stage in head.stages if stage not in dict(stages)]
    return text + (f"\nAs before: {list_names(kept, 20)}.\n" if kept else "")


def data_counts(changes: list[Change]) -> str:
    rows = [
        [
            code(change.name.removeprefix("clean.")),
            figure_text(change.before),
            figure_text(change.after),
            difference_text(change),
        ]
        for change in changes
        if change.name.startswith(DATA_COUNTS)
    ]
    if all(row[3] == "=" for row in rows):
        return "### Data\n\n" + ", ".join(f"{row[0]} {row[2]}" for row in rows) + ": all as before.\n"
    return "### Data\n\n" + markdown_table(["", "before", "now", "change"], rows)


def gates_of(head: Revision) -> list[Gate]:
    """The gates of params.yaml at that commit.

    Other sections may belong to another version of this code, so they are not read.

    Raises:
        UserError: A gate is not legal.
    """
    values = read_yaml_text(head.text(PARAMS))
    listed_gates = ((values or {}).get("report") or {}).get("gates") or []
    try:
        return [Gate.model_validate(gate) for gate in listed_gates]
    except ValidationError as error:
        raise UserError(f"report.gates: {error.errors()[0]['msg']}") from None


def gate_lines(verdicts: list[Verdict], stale: list[str], own_gates: bool) -> str:
    lines = ["- ⚠️ **This branch changes `report.gates`: what follows are its own.**"] if own_gates else []
    lines += [f"- ❌ {code(problem, 400)}" for problem in stale[:12]]
    if stale:
        lines.append("- Run `dvc repro`, and commit `dvc.lock` and `metrics.json`.")
    for verdict in verdicts:
        mark = "❌" if verdict.failed else "✅" if verdict.judged else "➖"
        lines.append(f"- {mark} {code(verdict.line, 400)}")
    return "### Gate\n\n" + "\n".join(lines) + "\n"


def status(verdicts: list[Verdict], stale: list[str], own_gates: bool) -> dict[str, str]:
    failed = [verdict.line for verdict in verdicts if verdict.failed]
    if stale:
        state, description = "failure", f"metrics.json is not of this commit: {stale[0]}"
    elif failed:
        state, description = "failure", f"{len(failed)} of {plural(len(verdicts), 'gate')} failed: {failed[0]}"
    else:
        judged = sum(verdict.judged for verdict in verdicts)
        left = f", {len(verdicts) - judged} not compared" if judged < len(verdicts) else ""
        changed = ", of gates that this branch changes" if own_gates else ""
        state, description = "success", f"{plural(judged, 'gate')} passed{left}{changed}"
    return {"state": state, "description": " ".join(visible(description).split())[:MOST_DESCRIPTION]}


def title_lines(base: str, commit: str, head: str) -> str:
    text = f"## Review of the run\n\n`{head[:10]}` against `{commit[:10]}`, where it left {code(base)}.\n"
    if git("rev-list", "--max-count=1", f"{commit}..{base}", "--", str(RESULT), str(DVC_LOCK), str(PARAMS)):
        text += f"\n**{code(base)} has other results by now: merge it and run `dvc repro` before this is merged.**\n"
    return text


def review(base: str, head: str) -> tuple[str, dict[str, str]]:
    """Compares the commit `head` with the commit where it left `base`.

    Returns:
        (the page, the status)

    Raises:
        UserError: A revision or one of its files cannot be read.
    """
    head = commit_of(head)
    commit = merge_base(base, head)
    outputs = Outputs()
    before, now = Revision(commit, outputs), Revision(head, outputs)
    changes, altered = metric_changes(before, now), param_changes(before, now)
    own_gates = any(name.startswith("report.gates") for name, *_ in altered)
    stale, verdicts = staleness(now, head), judge_gates(gates_of(now), now)
    sections = [
        f"{MARKER}\n{title_lines(base, commit, head)}",
        gate_lines(verdicts, stale, own_gates),
        results_text(changes, why_incomparable("evaluate.tuned.loss", before, now)),
        params_text(altered),
        what_ran(reruns(before, now), before, now),
        data_counts(changes),
        *from_outputs(before, now),
    ]
    return bounded(sections), status(verdicts, stale, own_gates)


def main() -> None:
    parser = command_parser("tools.review", __doc__)
    parser.add_argument("--base", default="origin/main", help="the branch that it would be merged into")
    parser.add_argument("--head", default="HEAD", help="the commit that is reviewed")
    parser.add_argument("--output", type=Path, help="a file instead of the screen")
    parser.add_argument("--status", type=Path, help="a file for the commit's status")
    options = parser.parse_args()
    try:
        os.chdir(git("rev-parse", "--show-toplevel").decode().strip())
        text, verdict = review(options.base, options.head)
    except (UserError, *MALFORMED) as error:
        reason = str(error) if isinstance(error, UserError) else f"a file of the commit is of another kind: {error!r}"
        reason = " ".join(visible(reason).split())
        if options.status is None:
            sys.exit(f"review: {reason}")
        text = f"{MARKER}\n## Review of the run\n\nIt could not be made: {code(reason, 1000)}\n"
        verdict = {"state": "error", "description": reason[:MOST_DESCRIPTION]}
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)
    if options.status:
        options.status.write_text(json.dumps(verdict), encoding="utf-8")


if __name__ == "__main__":
    main()
