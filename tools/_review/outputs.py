"""The parts of a review that need DVC's outputs: rows, curves and answers. Each says so where they are not
available.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable

from stages.comparison.revisions import MALFORMED, Revision
from stages.comparison.visible_text import visible
from stages.core.paths import CLEAN, CURVE, VALIDATION_CURVE
from stages.core.records import SPLITS
from stages.runtime.counts import plural
from tools._review.markdown import block, code, entities, foldable, markdown_table, sparkline

CHARACTERS = 1200  # shown of a prompt or an answer
EACH_WAY = 3  # so many best and worst answers are shown


def same_output(base: Revision, head: Revision, path: object) -> bool:
    """Whether both locks name the same output. False where a lock does not name it."""
    return base.hash_of(path) == head.hash_of(path) is not None


def rows_of(revision: Revision) -> dict[str, dict[str, str]] | None:
    """{split or "rejected": {row: its reason, or nothing}} of data/clean, or None where it is not available."""
    import pyarrow.parquet

    rows_by_split = {}
    for name in (*SPLITS, "rejected"):
        content = revision.output(CLEAN / f"{name}.parquet")
        if content is None:
            return None
        columns = ["id", "source", *(["reason"] if name == "rejected" else [])]
        rows = pyarrow.parquet.read_table(io.BytesIO(content), columns=columns).to_pylist()
        # Two rejected rows may have the same content. Their sources differ.
        rows_by_split[name] = {
            f"{row['id']} {row['source'] if name == 'rejected' else ''}": row.get("reason", "") for row in rows
        }
    return rows_by_split


def data_rows(base: Revision, head: Revision) -> str | None:
    """How many rows each split gained and lost, and how many were rejected for each reason."""
    if same_output(base, head, CLEAN):
        return "No row was added, removed or rejected: `data/clean` is the same.\n"
    before, after = (rows_of(revision) for revision in (base, head))
    if before is None or after is None:
        return None
    home = {row: split for split in SPLITS for row in before[split]}
    lines, moved = [], 0
    for split in SPLITS:
        added, removed = after[split].keys() - before[split].keys(), before[split].keys() - after[split].keys()
        moved += len(added & home.keys())
        lines.append([split, f"{len(added):,}", f"{len(removed):,}", f"{len(after[split]):,}"])
    came, went = (
        Counter(first["rejected"][row] for row in first["rejected"].keys() - second["rejected"].keys())
        for first, second in ((after, before), (before, after))
    )
    now = Counter(after["rejected"].values())
    lines += [
        [f"rejected: {code(reason)}", f"{came[reason]:,}", f"{went[reason]:,}", f"{now[reason]:,}"]
        for reason in sorted({*came, *went, *now})
    ]
    note = f"\n{plural(moved, 'row')} stood in another split before.\n" if moved else ""
    return markdown_table(["rows", "added", "removed", "now"], lines) + note


def curve(revision: Revision, path: object, column: str = "loss") -> list[float] | None:
    content = revision.output(path)
    if content is None:
        return None
    rows = csv.DictReader(io.StringIO(content.decode()))
    return [float(row[column]) for row in rows if row.get(column)]


def loss_curves(base: Revision, head: Revision) -> str | None:
    lines = []
    for title, path in (("train", CURVE), ("validation", VALIDATION_CURVE)):
        drawn = {name: curve(revision, path) for name, revision in (("before", base), ("now", head))}
        drawn = {name: values for name, values in drawn.items() if values}
        everything = [value for values in drawn.values() for value in values]
        if same_output(base, head, path):
            drawn.pop("before", None)
        for name, values in drawn.items():
            spark = sparkline(values, min(everything), max(everything))
            figures = (values[0], values[-1], min(values))
            lines.append([title, name, f"`{spark}`", *(f"{value:.4g}" for value in figures)])
    if not lines:
        return None
    return markdown_table(["loss", "", "", "first", "last", "lowest"], lines, numbers_from=3)


def answer_changes(base: Revision, head: Revision) -> list[tuple[float, dict, dict]] | None:
    """(change of chrF, earlier answer, later answer) for each prompt that both tuned models answered."""
    sides = []
    for revision in (base, head):
        rows, answers = revision.rows("tuned"), revision.rows("tuned", "predictions")
        if rows is None or answers is None:
            return None
        chrf = {row["id"]: row["chrf"] for row in rows}
        sides.append({answer["id"]: (chrf[answer["id"]], answer) for answer in answers})
    before, after = sides
    changes = [(after[row][0] - before[row][0], before[row][1], after[row][1]) for row in after if row in before]
    return sorted(changes, key=lambda change: (-change[0], change[2]["id"]))


def side_by_side(change: float, before: dict, after: dict) -> str:
    cells = [block(text, CHARACTERS) for text in (after["reference"], before["output"], after["output"])]
    answers = "<table><tr><th>Reference</th><th>Before</th><th>Now</th></tr><tr>"
    answers += "".join(f'<td valign="top">{cell}</td>' for cell in cells) + "</tr></table>"
    summary = f"chrF {change:+.1f}: {block_name(after['source'])}"
    asked = block(after["prompt"], CHARACTERS, keep_end=True)  # the end of a conversation is the question
    return foldable(summary, f"{asked}\n\n{answers}\n")


def block_name(text: str) -> str:
    """A name for a summary. A summary is HTML, in which Markdown's backticks would be visible."""
    return f"<code>{entities(' '.join(visible(text).split())[:120])}</code>"


def samples(base: Revision, head: Revision) -> str | None:
    paths = [f"metrics/evaluate/tuned.{kind}.jsonl" for kind in ("rows", "predictions")]
    if all(same_output(base, head, path) for path in paths):
        return "The tuned model's answers are the same, to the letter.\n"
    changes = answer_changes(base, head)
    if changes is None:
        return None
    if not changes:
        return "No prompt was answered by both: the test rows are others.\n"
    best = [change for change in changes[:EACH_WAY] if change[0] > 0]
    worst = [change for change in changes[::-1][:EACH_WAY] if change[0] < 0]
    shown = [
        f"{title}\n\n" + "\n".join(side_by_side(*change) for change in selected)
        for title, selected in (("Best:", best), ("Worst:", worst))
        if selected
    ]
    closer, farther = (sum(sign * change[0] > 0 for change in changes) for sign in (1, -1))
    note = (
        f"Of {plural(len(changes), 'answer')}, {closer:,} came closer to the reference by chrF and {farther:,} less.\n"
    )
    return "\n".join([note, *shown])


PARTS: dict[str, Callable[[Revision, Revision], str | None]] = {
    "Rows": data_rows,
    "Loss curves": loss_curves,
    "Best and worst answers": samples,
}


def from_outputs(base: Revision, head: Revision) -> list[str]:
    """The sections. Those whose data nobody has are named in one line with the reason."""
    sections, missing = [], []
    for title, make in PARTS.items():
        try:
            body = make(base, head)
        except ModuleNotFoundError as error:
            body, head.outputs.problem = None, f"{error.name} is not installed"
        except MALFORMED as error:
            body, head.outputs.problem = None, f"a file of another kind ({error!r})"
        if body is None:
            missing.append(title.lower())
        else:
            sections.append(f"### {title}\n\n{body}")
    if missing:
        reason = head.outputs.problem or "neither the cache nor the remote has what these commits' dvc.lock names"
        sections.append(f"Not shown: {', '.join(missing)}, which need DVC's outputs: {code(reason, 300)}.\n")
    return sections
