"""Compares base and tuned row by row: the rows that became worse, and the table of test rows."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from stages._report.layout import Table, spread
from stages.comparison.number_text import NOTHING, number, signed_difference, with_sign
from stages.core.statistics import COLUMNS
from stages.runtime.errors import UserError

AGAIN = "Run `dvc repro --force evaluate`"
WORST = 10
MOST_ROWS = 1000  # in the page's table, so that a browser can search it while one types
KINDS = {"base": "Base", "tuned": "Tuned", "change": "Change of"}
ROW_MEASURES = ("loss", "chrF")  # of each kind


class RowLine(NamedTuple):
    """A line of the table of test rows."""

    source: str
    tokens: str
    cells: list[tuple[str, str]]  # (kind, text), the measures of each kind in turn
    worse: bool
    answers: tuple[dict, dict] | None  # the predictions of base and tuned, where an answer was generated


def read_evaluated_rows(path: Path) -> list[dict]:
    """The rows of metrics/evaluate/<name>.rows.jsonl.

    Raises:
        UserError: The file is missing, or a row lacks something.
    """
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            rows = [json.loads(line) for line in file if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path} is missing. `dvc repro evaluate` makes it") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}. {AGAIN}") from None
    for place, row in enumerate(rows, 1):
        figures = [row.get(name) for name in ("cluster", *COLUMNS)] if isinstance(row, dict) else [None]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in figures):
            raise UserError(f"{path}:{place} lacks one of cluster, {', '.join(COLUMNS)}. {AGAIN}")
        if not all(isinstance(row.get(name), str) for name in ("id", "source")):
            raise UserError(f"{path}:{place} lacks its id or source. {AGAIN}")
        if not isinstance(row.get("slices"), dict):
            raise UserError(f"{path}:{place} lacks its slices. {AGAIN}")
    return rows


def check_same_rows(base: list[dict], tuned: list[dict]) -> None:
    """Checks that there are rows, and that both evaluations have the same ones.

    Raises:
        UserError: They differ, or there are none.
    """
    if [row["id"] for row in base] != [row["id"] for row in tuned] or not base:
        raise UserError(f"base and tuned were not evaluated on the same rows. {AGAIN}")


def plain_rows(base: list[dict]) -> list[dict]:
    """The base's rows with the counts of its completion prompts."""
    return [row["plain"] | {"cluster": row["cluster"]} for row in base]


def loss(row: dict) -> float:
    """Nats a token of the row's answers in the data."""
    return row["loss_sum"] / max(1, row["tokens"])


def worse_rows_table(base: list[dict], tuned: list[dict]) -> Table:
    """The rows on which the tuned model's loss is above the base's, the worst first."""
    pairs = sorted(zip(base, tuned, strict=True), key=lambda pair: (loss(pair[0]) - loss(pair[1]), pair[0]["id"]))
    regressions = [pair for pair in pairs if loss(pair[1]) > loss(pair[0])]
    lines = [
        [
            before["source"],
            *map(number, (before["tokens"], loss(before), loss(after))),
            signed_difference(loss(before), loss(after)),
        ]
        for before, after in regressions[:WORST]
    ]
    caption = f"Rows that became worse: {number(len(regressions))} of {number(len(base))}, by loss"
    return Table(caption, ["", "Tokens", "Base", "Tuned", "Change"], lines)


def lost_tests_table(base: list[dict], tuned: list[dict]) -> Table | None:
    """The rows whose tests only the base's answer passed. None where no row has tests."""
    tested = [pair for pair in zip(base, tuned, strict=True) if pair[0]["tested"]]
    if not tested:
        return None
    lost = sorted(before["source"] for before, after in tested if before["passed"] and not after["passed"])
    won = sum(after["passed"] and not before["passed"] for before, after in tested)
    caption = (
        f"Answers that passed their tests before and do not now: {number(len(lost))} of {number(len(tested))} "
        f"({number(won)} the other way round)"
    )
    return Table(caption, [""], [[source] for source in lost[:WORST]])


def interval_text(values: dict[str, float], name: str, scale: float = 1.0) -> str:
    """The interval of a difference, such as +1.2 to +3.4. NOTHING where there were too few rows for one."""
    if f"{name}_lo" not in values:
        return NOTHING
    low, high = (scale * values[f"{name}_{end}"] for end in ("lo", "hi"))
    return f"{with_sign(three_digits(low))} to {with_sign(three_digits(high))}"


def three_digits(value: float) -> str:
    """A number to three digits, a large one in full: 4.25, or 29,400."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def row_measures(any_answers: bool) -> tuple[str, ...]:
    """The measures of a row. Where no answer was generated, there is no chrF."""
    return ROW_MEASURES if any_answers else ROW_MEASURES[:1]


def row_line(base: dict, tuned: dict, answers: tuple[dict, dict] | None, any_answers: bool = True) -> RowLine:
    """The line of a row. any_answers: whether an answer was generated to any row."""
    texts = [number(loss(base)), number(base["chrf"]), number(loss(tuned)), number(tuned["chrf"])]
    texts += [signed_difference(loss(base), loss(tuned)), signed_difference(base["chrf"], tuned["chrf"])]
    if answers is None:
        texts[1::2] = [NOTHING] * 3
    if not any_answers:
        texts = texts[::2]
    kinds = [kind for kind in KINDS for _ in row_measures(any_answers)]
    cells = list(zip(kinds, texts, strict=True))
    return RowLine(base["source"], number(base["tokens"]), cells, loss(tuned) > loss(base), answers)


def row_lines(rows: dict[str, list[dict]], generated: list[tuple[dict, dict]]) -> list[RowLine]:
    """Lines for at most MOST_ROWS test rows, evenly spread. rows: {"base": …, "tuned": …}, the same ones."""
    answers = {base["id"]: (base, tuned) for base, tuned in generated}
    pairs = spread(list(zip(rows["base"], rows["tuned"], strict=True)), MOST_ROWS)
    return [row_line(base, tuned, answers.get(base["id"]), bool(generated)) for base, tuned in pairs]
