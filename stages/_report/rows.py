"""Base and tuned row by row: how they differ and how sure that is, by kinds of rows, and where it became worse."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages._report.parts import Table, difference, number, signed
from stages.shared.errors import UserError
from stages.shared.measures import COLUMNS, changed, measured

AGAIN = "Run `dvc repro --force evaluate`"
LENGTHS = (32, 64, 128, 256, 512)  # tokens of a row's answers: where the slices end
MOST_SLICES = 10
WORST = 10


def read_rows(path: Path) -> list[dict]:
    """Lines of metrics/evaluate/<name>.rows.jsonl."""
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
    return rows


def refuse_unequal_rows(base: list[dict], tuned: list[dict]) -> None:
    if [row["id"] for row in base] != [row["id"] for row in tuned] or not base:
        raise UserError(f"base and tuned were not evaluated on the same rows. {AGAIN}")


def columns(rows: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows], np.float64) for name in COLUMNS}


def change(base: list[dict], tuned: list[dict]) -> dict[str, float]:
    """tuned − base of every measure, in pairs, with its 95 % interval."""
    return changed(columns(base), columns(tuned), np.array([row["cluster"] for row in base]))


def length_of(row: dict) -> str:
    edge = next((edge for edge in LENGTHS if row["tokens"] <= edge), None)
    return f"up to {edge} tokens" if edge else f"more than {LENGTHS[-1]} tokens"


def document_of(row: dict) -> str:
    return row["source"].rpartition(":")[0]


def by_length(base: list[dict], tuned: list[dict]) -> Table:
    edges = [*(f"up to {edge} tokens" for edge in LENGTHS), f"more than {LENGTHS[-1]} tokens"]
    table = slices(base, tuned, "Loss by length of the answer", length_of)
    return table._replace(rows=sorted(table.rows, key=lambda line: edges.index(line[0])))


def by_source(base: list[dict], tuned: list[dict]) -> Table:
    return slices(base, tuned, "Loss by source, those with the most tokens", document_of)


def slices(base: list[dict], tuned: list[dict], caption: str, name_of: Callable[[dict], str]) -> Table:
    """Losses by kind of row, the kinds with the most tokens first."""
    kinds: dict[str, list[int]] = {}
    for place, row in enumerate(base):
        kinds.setdefault(name_of(row), []).append(place)
    largest = sorted(kinds, key=lambda name: (-sum(base[place]["tokens"] for place in kinds[name]), name))
    lines = []
    for name in largest[:MOST_SLICES]:
        before, after = ({k: v[kinds[name]] for k, v in columns(rows).items()} for rows in (base, tuned))
        counts = (len(kinds[name]), int(before["tokens"].sum()))
        one, other = measured(before)["loss"], measured(after)["loss"]
        lines.append([name, *map(number, (*counts, one, other)), difference(one, other)])
    return Table(caption, ["", "Rows", "Tokens", "Base", "Tuned", "Change"], lines)


def worst(base: list[dict], tuned: list[dict]) -> Table:
    """The rows on which the tuned model's loss is above the base's, the worst first."""

    def loss(row: dict) -> float:
        return row["loss_sum"] / max(1, row["tokens"])

    pairs = sorted(zip(base, tuned, strict=True), key=lambda pair: (loss(pair[0]) - loss(pair[1]), pair[0]["id"]))
    regressions = [pair for pair in pairs if loss(pair[1]) > loss(pair[0])]
    lines = [
        [one["source"], *map(number, (one["tokens"], loss(one), loss(other))), difference(loss(one), loss(other))]
        for one, other in regressions[:WORST]
    ]
    caption = f"Rows that became worse: {number(len(regressions))} of {number(len(base))}, by loss"
    return Table(caption, ["", "Tokens", "Base", "Tuned", "Change"], lines)


def interval(values: dict[str, float], name: str, scale: float = 1.0) -> str:
    """Such as +1.2 to +3.4, of a difference."""
    low, high = (signed(f"{scale * values[f'{name}_{end}']:.3g}") for end in ("lo", "hi"))
    return f"{low} to {high}"
